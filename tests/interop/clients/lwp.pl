#!/usr/bin/perl
# Perl's LWP: bodies of known and unknown length, WebDAV methods, conditional downloads.
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
use LWP::UserAgent;

my $url = shift;
my $agent = LWP::UserAgent->new(keep_alive => 4, timeout => 30);
sub file { open my $file, '<:raw', "files/$_[0]" or die; local $/; <$file> }
sub report {
    my $response = shift;
    my $request = $response->request;
    print $request->method, ' ', $request->uri, "\n", $response->status_line, "\n";
    # `Client-*` fields are added by LWP itself. The length of a list of properties varies: entity
    # tags in it are weak in the second in which a file changes.
    my $ignored = $response->code == 207 ? qr/^(Client-|Content-Length:)/ : qr/^Client-/;
    print map { "$_\n" } grep { !/$ignored/ } split /\n/, $response->headers_as_string;
    # Text as sorted elements: servers list properties in random order.
    my @elements = sort split /\n|(?<=>)(?=<)/, $response->content;
    @elements = sha256_hex($response->content) unless $response->content_type =~ /xml|html/;
    print map({ "$_\n" } @elements), "\n";
}
sub request { report $agent->request(HTTP::Request->new(@_)) }
sub stream {
    my @pieces = map { substr file('large.bin'), $_ * 500_000, 500_000 } 0 .. 5;
    request PUT => "$url/streamed.bin", [], sub { shift(@pieces) // '' };
}

report $agent->put("$url/put.bin", Content => file('large.bin'));
stream();
report $agent->get("$url/$_") for qw(put.bin streamed.bin seed/small.txt seed/empty missing);
report $agent->head("$url/put.bin");
report $agent->post("$url/seed/small.txt", [field => 'value']);
report $agent->get("$url/put.bin", Range => 'bytes=100-199');
report $agent->mirror("$url/seed/large.bin", 'mirrored.bin') for 1 .. 2;
request MKCOL => "$url/made/";
request PROPFIND => "$url/seed/", [Depth => 0];
request COPY => "$url/put.bin", [Destination => "$url/made/copied.bin"];
request MOVE => "$url/put.bin", [Destination => "$url/made/moved.bin"];
request OPTIONS => "$url/";
report $agent->delete("$url/made/");
