#!/usr/bin/env bash
# wget: a recursive download, a resumed one, and conditional ones.
source "${0%/*}/transcript.sh"
wget() { command wget --tries=2 --timeout=30 --no-verbose "$@"; }
url=$1
mirrors=(--recursive --no-parent --no-host-directories --reject "index.html*")
run wget "${mirrors[@]}" --directory-prefix mirror "$url/seed/"
run wget --timestamping --directory-prefix mirror "$url/seed/large.bin"
run wget --timestamping --directory-prefix mirror "$url/seed/large.bin"
head -c 1000000 mirror/large.bin >resumed.bin
run wget --continue --output-document resumed.bin "$url/seed/large.bin"
run wget --spider "$url/seed/small.txt"
run wget --method PUT --body-file files/large.bin --output-document put.html "$url/put.bin"
run wget --output-document got.bin "$url/put.bin"
run wget --method DELETE --output-document deleted.html "$url/put.bin"
run wget --header "Accept-Encoding: gzip" --output-document - "$url/seed/small.txt"
run wget --output-document missing.html "$url/missing"
run wget --content-on-error --output-document missing.html "$url/missing"
