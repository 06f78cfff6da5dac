#!/usr/bin/env bash
# litmus: the conformance tests of WebDAV. Its debug log goes to the home directory.
url=$1
cd "$HOME"
exec litmus -k "$url"
