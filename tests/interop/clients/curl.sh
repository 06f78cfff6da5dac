#!/usr/bin/env bash
# curl: heads of the final responses as they arrive, their fields sorted, and the bodies.
source "${0%/*}/transcript.sh"
curl() {
    command curl --silent --show-error --max-time 30 --dump-header heads --output body "$@"
    local code=$?
    awk 'BEGIN { RS = "\r\n\r\n" } /./ { head = $0 } END { print head }' heads | tr -d '\r' >head
    head -n 1 head
    tail -n +2 head | LC_ALL=C sort --ignore-case
    if cmp -s heads body; then
        : # For HEAD, curl writes the head as the body too.
    elif grep -q '<?xml' body; then
        # Go's server lists properties in random order.
        sed 's/></>\n</g' body | LC_ALL=C sort
    elif grep -qI . body; then
        cat body
    else
        sha256sum <body
    fi
    rm -f heads head body
    return $code
}
url=$1
run curl "$url/seed/small.txt"
run curl --http1.0 "$url/seed/small.txt"
run curl --head "$url/seed/large.bin"
run curl --range 5-14 "$url/seed/large.bin"
# The length is that of a random boundary too.
run curl --range 0-4,10-14 "$url/seed/small.txt" | grep -vi "^content-length:"
run curl --range 9000000- "$url/seed/large.bin"
run curl --time-cond "2030-01-01" "$url/seed/small.txt"
run curl --header 'If-None-Match: *' --upload-file files/medium.bin "$url/put.bin"
run curl --header 'If-None-Match: *' --upload-file files/medium.bin "$url/put.bin"
run curl --header 'Expect: 100-continue' --upload-file files/large.bin "$url/put.bin"
run curl --header 'Transfer-Encoding: chunked' --upload-file files/large.bin "$url/chunked.bin"
run curl --header 'Content-Range: bytes 0-3/10' --upload-file files/small.txt "$url/put.bin"
run curl --request OPTIONS "$url/"
run curl --request PROPFIND --header 'Depth: 1' "$url/seed/"
run curl --request MKCOL "$url/made/"
run curl --request MKCOL "$url/made/"
run curl --request COPY --header "Destination: $url/made/copied.bin" "$url/put.bin"
moves=(--request MOVE --header "Destination: $url/made/copied.bin")
run curl "${moves[@]}" --header 'Overwrite: F' "$url/put.bin"
run curl "${moves[@]}" "$url/put.bin"
cat >lock.xml <<'XML'
<?xml version="1.0"?>
<D:lockinfo xmlns:D="DAV:">
<D:lockscope><D:exclusive/></D:lockscope><D:locktype><D:write/></D:locktype>
</D:lockinfo>
XML
run curl --request LOCK --header 'Timeout: Second-60' --data @lock.xml "$url/made/"
run curl --upload-file files/small.txt "$url/made/locked.txt"
run curl --request DELETE "$url/chunked.bin"
run curl "$url/seed"
run curl "$url/seed/name%20with%20blanks.txt"
run curl --globoff "$url/seed/[brackets]"
run curl "$url/seed/Gr%C3%BC%C3%9Fe%20%26%20Co%20(1)+100%25.txt"
run curl "$url/missing"
run curl --data 'a=b' "$url/seed/small.txt"
