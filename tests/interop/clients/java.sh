#!/usr/bin/env bash
# Java's HttpURLConnection and HttpClient, with their own names of header fields.
exec java "${0%/*}/Dav.java" "$1"
