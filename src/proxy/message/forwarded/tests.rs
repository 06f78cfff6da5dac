use http::{Request, Version};

use super::*;
use crate::proxy::policy::trusted::TrustedPeer;

fn trusted() -> TrustedNetworks {
    let networks = ["10.0.0.0/8", "2001:db8:aaaa::/48"];
    let networks = networks.map(|network| TrustedPeer::Network(network.parse().unwrap()));
    networks
        .into_iter()
        .chain([TrustedPeer::UnixSockets])
        .collect()
}

fn head(fields: &[(&str, &str)]) -> request::Parts {
    let mut request = Request::get("/x").header("host", "backend:8080");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn peer() -> ClientConnection {
    ClientConnection::new(Some("10.0.0.1:5000".parse().unwrap()), Scheme::HTTP)
}

/// What a trusted peer states with these fields: the client, its scheme, `Host`, and the list that
/// is sent on.
fn stated(kind: ForwardedHeaders, fields: &[(&str, &str)]) -> [String; 4] {
    let mut head = head(fields);
    let client = read(&mut head, &peer(), kind, &trusted());
    let mut out = HeaderMap::new();
    write(&mut out, &client, head.headers.get(header::HOST), kind);
    let list = match kind {
        ForwardedHeaders::Forwarded => out.get(header::FORWARDED),
        _ => out.get(X_FORWARDED_FOR),
    };
    [
        client.address().to_string(),
        client.scheme().to_string(),
        head.headers[header::HOST].to_str().unwrap().to_owned(),
        list.map_or_else(String::new, |list| list.to_str().unwrap().to_owned()),
    ]
}

/// The client's address as `X-Forwarded-For` states it, in these lines, and the list that is sent on.
fn listed(lines: &[&str]) -> (String, String) {
    let fields: Vec<_> = lines
        .iter()
        .map(|line| ("x-forwarded-for", *line))
        .collect();
    let [client, _, _, list] = stated(ForwardedHeaders::XForwarded, &fields);
    (client, list)
}

#[test]
fn the_client_is_the_last_address_that_is_not_trusted() {
    for (lines, client, list) in [
        (&["192.0.2.7"][..], "192.0.2.7", "192.0.2.7, 10.0.0.1"),
        // What the client itself has written is not sent on.
        (
            &["198.51.100.1, 192.0.2.7"],
            "192.0.2.7",
            "192.0.2.7, 10.0.0.1",
        ),
        (
            &["10.9.9.9, 192.0.2.7 ,10.0.0.2,\t10.0.0.3"],
            "192.0.2.7",
            "192.0.2.7, 10.0.0.2, 10.0.0.3, 10.0.0.1",
        ),
        // Several lines are one list.
        (
            &["10.9.9.9, 192.0.2.7", "10.0.0.2", "10.0.0.3"],
            "192.0.2.7",
            "192.0.2.7, 10.0.0.2, 10.0.0.3, 10.0.0.1",
        ),
        (
            &["192.0.2.7", "", " , ,10.0.0.2,,"],
            "192.0.2.7",
            "192.0.2.7, 10.0.0.2, 10.0.0.1",
        ),
        // All are trusted, or there is none: a request of the load balancer itself.
        (
            &["10.0.0.2, 10.0.0.3"],
            "10.0.0.2",
            "10.0.0.2, 10.0.0.3, 10.0.0.1",
        ),
        (&[], "10.0.0.1:5000", "10.0.0.1"),
        (&[" , ,"], "10.0.0.1:5000", "10.0.0.1"),
    ] {
        let expected = (client.to_owned(), list.to_owned());
        assert_eq!(listed(lines), expected, "{lines:?}");
    }
}

#[test]
fn addresses_are_written_in_many_ways() {
    for (written, client) in [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7:4711", "192.0.2.7:4711"),
        ("192.0.2.7:", "192.0.2.7"),
        ("192.0.2.7:99999", "192.0.2.7"),
        ("192.0.2.7:_port", "192.0.2.7"),
        ("2001:DB8::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:db8::7]:4711", "[2001:db8::7]:4711"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("[::ffff:192.0.2.7]:80", "192.0.2.7:80"),
        // Trusted in every spelling, so that the client stands before it.
        ("192.0.2.7, ::ffff:10.0.0.2", "192.0.2.7"),
        ("192.0.2.7, 10.0.0.2:80", "192.0.2.7"),
        ("192.0.2.7, [2001:db8:aaaa::1]:80", "192.0.2.7"),
        ("192.0.2.7, 2001:db8:aaaa::1", "192.0.2.7"),
    ] {
        assert_eq!(listed(&[written]).0, client, "{written}");
    }
    for garbage in [
        "unknown",
        "_hidden",
        "client.example.com",
        "192.0.2",
        "192.0.2.7.8",
        "192.0.2.256",
        "192.0.2.7:port",
        "192.0.2.7:80:90",
        "[192.0.2.7]",
        "[2001:db8::7",
        "2001:db8::7]",
        "[]",
        ":",
        ":80",
        "fe80::1%eth0",
        "\"192.0.2.7\"",
        "192.0.2.7 10.0.0.2",
        "-",
        "\u{1}",
    ] {
        // The element before it was written by the client: it is no reason to believe it.
        let lines = [format!("10.0.0.9, {garbage}"), "10.0.0.2".to_owned()];
        let fields = lines
            .iter()
            .filter(|line| HeaderValue::from_str(line).is_ok());
        let lines: Vec<_> = fields.map(String::as_str).collect();
        if lines.len() == 2 {
            let expected = (
                "unknown".to_owned(),
                "unknown, 10.0.0.2, 10.0.0.1".to_owned(),
            );
            assert_eq!(listed(&lines), expected, "{garbage}");
        }
    }
    let bytes = HeaderValue::from_bytes(b"10.0.0.9, 192.0.2.7\xff").unwrap();
    let mut head = head(&[]);
    head.headers.insert(X_FORWARDED_FOR, bytes);
    let client = read(&mut head, &peer(), ForwardedHeaders::XForwarded, &trusted());
    assert_eq!(client.address().ip, None);
}

#[test]
fn scheme_and_host_are_those_of_the_client() {
    let hop = ("x-forwarded-for", "192.0.2.7, 10.0.0.2");
    for (fields, scheme, host) in [
        (&[][..], "http", "backend:8080"),
        (
            &[
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "files.example.com"),
            ],
            "https",
            "files.example.com",
        ),
        (&[("x-forwarded-proto", "HTTPS")], "https", "backend:8080"),
        (&[("x-forwarded-proto", "wss")], "https", "backend:8080"),
        (&[("x-forwarded-proto", "ws")], "http", "backend:8080"),
        (&[("x-forwarded-proto", "gopher")], "http", "backend:8080"),
        (&[("x-forwarded-proto", "")], "http", "backend:8080"),
        (
            &[("x-forwarded-host", "Files.Example.com:8443")],
            "http",
            "Files.Example.com:8443",
        ),
        (
            &[("x-forwarded-host", "[2001:db8::5]:8443")],
            "http",
            "[2001:db8::5]:8443",
        ),
        // One that each proxy has appended to, one that the last has replaced.
        (
            &[
                hop,
                ("x-forwarded-proto", "https, http"),
                ("x-forwarded-host", "a.example"),
            ],
            "https",
            "a.example",
        ),
        (
            &[
                hop,
                ("x-forwarded-proto", "http"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-proto", "http"),
                ("x-forwarded-host", "forged.example, a.example, b.example"),
            ],
            "https",
            "a.example",
        ),
        // The client's own value stands before the one that the load balancer has appended.
        (
            &[
                ("x-forwarded-for", "192.0.2.7"),
                ("x-forwarded-proto", "https, http"),
                ("x-forwarded-host", "forged.example, a.example"),
            ],
            "http",
            "a.example",
        ),
        (
            &[
                ("x-forwarded-proto", "https, http"),
                ("x-forwarded-host", "f.example, a.example"),
            ],
            "http",
            "a.example",
        ),
        // No host: the request's own stays.
        (
            &[("x-forwarded-host", "a.example/x")],
            "http",
            "backend:8080",
        ),
        (
            &[("x-forwarded-host", "user@a.example")],
            "http",
            "backend:8080",
        ),
        (
            &[("x-forwarded-host", "a.example:port")],
            "http",
            "backend:8080",
        ),
        (&[("x-forwarded-host", "")], "http", "backend:8080"),
        // The other kind of fields is not read.
        (
            &[("forwarded", "host=a.example;proto=https")],
            "http",
            "backend:8080",
        ),
    ] {
        for kind in [ForwardedHeaders::XForwarded, ForwardedHeaders::Off] {
            let [_, found, found_host, _] = stated(kind, fields);
            assert_eq!([found.as_str(), &found_host], [scheme, host], "{fields:?}");
        }
    }
}

#[test]
fn forwarded_is_read_as_rfc_7239_has_it() {
    for (lines, client, scheme, host, list) in [
        (
            &["for=192.0.2.7;proto=https;host=files.example.com;by=10.0.0.1"][..],
            "192.0.2.7",
            "https",
            "files.example.com",
            "for=192.0.2.7;host=\"files.example.com\";proto=https, for=10.0.0.1",
        ),
        (
            &["For=\"[2001:db8::1]:80\" ; Proto=\"https\"; HOST=\"files.example.com:8443\""],
            "[2001:db8::1]:80",
            "https",
            "files.example.com:8443",
            "for=\"[2001:db8::1]\";host=\"files.example.com:8443\";proto=https, for=10.0.0.1",
        ),
        (
            &[
                "for=198.51.100.1;proto=https",
                "for=192.0.2.7, for=10.0.0.2;proto=https",
            ],
            "192.0.2.7",
            "http",
            "backend:8080",
            "for=192.0.2.7;host=\"backend:8080\";proto=http, for=10.0.0.2, for=10.0.0.1",
        ),
        (
            &["for=\"192\\.0.2.7\";proto=\"htt\\ps\", for=\"[2001:db8:aaaa::1]\";host=inner"],
            "192.0.2.7",
            "https",
            "backend:8080",
            "for=192.0.2.7;host=\"backend:8080\";proto=https, for=\"[2001:db8:aaaa::1]\", for=10.0.0.1",
        ),
        (
            &[" , ;for=192.0.2.7;;proto=https; , ,"],
            "192.0.2.7",
            "https",
            "backend:8080",
            "for=192.0.2.7;host=\"backend:8080\";proto=https, for=10.0.0.1",
        ),
        // Without the quotes that it needs.
        (
            &["for=[2001:db8::1]:80;proto=https;host=files.example.com:8443"],
            "[2001:db8::1]:80",
            "https",
            "files.example.com:8443",
            "for=\"[2001:db8::1]\";host=\"files.example.com:8443\";proto=https, for=10.0.0.1",
        ),
        (
            &["for=192.0.2.9, for=_hidden;proto=https"],
            "unknown",
            "https",
            "backend:8080",
            "for=unknown;host=\"backend:8080\";proto=https, for=10.0.0.1",
        ),
        // Nothing says who the client is: the peer.
        (
            &["for=192.0.2.9, proto=https;host=files.example.com"],
            "10.0.0.1:5000",
            "https",
            "files.example.com",
            "for=10.0.0.1;host=\"files.example.com\";proto=https",
        ),
        (
            &[],
            "10.0.0.1:5000",
            "http",
            "backend:8080",
            "for=10.0.0.1;host=\"backend:8080\";proto=http",
        ),
    ] {
        let fields: Vec<_> = lines.iter().map(|line| ("forwarded", *line)).collect();
        let found = stated(ForwardedHeaders::Forwarded, &fields);
        assert_eq!(found, [client, scheme, host, list], "{lines:?}");
    }
}

#[test]
fn a_malformed_forwarded_hides_nothing_and_forges_nothing() {
    let unknown = "for=unknown;host=\"backend:8080\";proto=http, for=10.0.0.1";
    for line in [
        // The client has left a quote open: the load balancer's element seems to be within.
        "for=10.9.9.9;x=\", for=192.0.2.7;proto=https",
        // And the host that the load balancer has quoted ends it.
        "x=\", for=192.0.2.7;host=\",for=10.9.9.9;y=\"\"",
        "x=\"\\, for=192.0.2.7;host=\";for=10.9.9.9;y=\"",
        "for=192.0.2.7;for=10.9.9.9",
        "for=192.0.2.7;proto=http;proto=https",
        "for=192.0.2.7;host=a;host=b",
        "for",
        "for;proto=https",
        "for=",
        "=192.0.2.7",
        "for =192.0.2.7",
        "for= 192.0.2.7",
        "for=192.0.2.7 proto=https",
        "for=\"192.0.2.7\"x",
        "for=\"192.0.2.7",
        "for=192.0.2.7\"",
        "for=\"192.0.2.7\\",
    ] {
        let found = stated(ForwardedHeaders::Forwarded, &[("forwarded", line)]);
        assert_eq!(
            found,
            ["unknown", "http", "backend:8080", unknown],
            "{line}"
        );
        // Lines behind it are read.
        let lines = [
            ("forwarded", line),
            ("forwarded", "for=192.0.2.8;proto=https"),
        ];
        let found = stated(ForwardedHeaders::Forwarded, &lines);
        assert_eq!(found[..2], ["192.0.2.8", "https"], "{line}");
        let lines = [
            ("forwarded", line),
            ("forwarded", "for=10.0.0.2;proto=https"),
        ];
        let found = stated(ForwardedHeaders::Forwarded, &lines);
        assert_eq!(found[..2], ["unknown", "http"], "{line}");
    }
}

#[test]
fn an_ambiguous_host_stays_for_the_guard_to_reject() {
    let after = |request: request::Builder| {
        let request = request.header("x-forwarded-host", "files.example.com");
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        read(&mut head, &peer(), ForwardedHeaders::XForwarded, &trusted());
        let hosts: Vec<_> = head
            .headers
            .get_all(header::HOST)
            .iter()
            .map(|host| host.to_str().unwrap().to_owned())
            .collect();
        (head.uri.to_string(), hosts.join(" "))
    };
    for (request, target, hosts) in [
        (
            Request::get("/x").header("host", "a"),
            "/x",
            "files.example.com",
        ),
        (
            Request::get("http://a/x?y").header("host", "a:80"),
            "/x?y",
            "files.example.com",
        ),
        (
            Request::options("*").header("host", "a"),
            "*",
            "files.example.com",
        ),
        (
            Request::get("http://b/x").header("host", "a"),
            "http://b/x",
            "a",
        ),
        (
            Request::get("/x").header("host", "a").header("host", "b"),
            "/x",
            "a b",
        ),
        (Request::get("/x"), "/x", ""),
        (Request::get("/x").version(Version::HTTP_10), "/x", ""),
    ] {
        assert_eq!(after(request), (target.to_owned(), hosts.to_owned()));
    }
}

#[test]
fn a_peer_on_a_unix_socket_has_no_address_in_the_list() {
    let peer = ClientConnection::new(None, Scheme::HTTP);
    let sent = |fields: &[(&str, &str)]| {
        let client = read(
            &mut head(fields),
            &peer,
            ForwardedHeaders::XForwarded,
            &trusted(),
        );
        let mut out = HeaderMap::new();
        out.insert(X_FORWARDED_FOR, HeaderValue::from_static("forged"));
        write(&mut out, &client, None, ForwardedHeaders::XForwarded);
        out.get(X_FORWARDED_FOR)
            .map(|list| list.to_str().unwrap().to_owned())
    };
    let list = |text: &str| Some(text.to_owned());
    assert_eq!(sent(&[("x-forwarded-for", "192.0.2.7")]), list("192.0.2.7"));
    assert_eq!(
        sent(&[("x-forwarded-for", "192.0.2.7, 10.0.0.2")]),
        list("192.0.2.7, 10.0.0.2")
    );
    assert_eq!(sent(&[("x-forwarded-for", "unknown")]), None);
    assert_eq!(sent(&[]), None);
}
