#!/usr/bin/env python3
"""Python clients: `http.client` and `requests`, with keep-alive connections.

Usage: apps.py LIBRARY URL-OF-AN-ECHO FILE
"""

import hashlib
import http.client
import sys
import urllib.parse

library, url, path = sys.argv[1:]
body = open(path, "rb").read()
expected = hashlib.sha256(body).hexdigest().encode()
half = len(body) // 2


def with_http_client():
    target = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(target.hostname, target.port, timeout=30)
    for headers, data in [
        ({}, body),
        ({"Transfer-Encoding": "chunked"}, iter([body[:half], body[half:]])),
        ({"Authorization": "Basic of-the-app"}, body),
    ]:
        connection.request("POST", target.path, data, headers, encode_chunked="Transfer-Encoding" in headers)
        yield connection.getresponse()


def with_requests():
    import requests

    session = requests.Session()
    yield_bytes = lambda: iter([body[:half], body[half:]])
    for ask in [
        lambda: session.post(url, data=body, timeout=30),
        lambda: session.post(url, data=yield_bytes(), timeout=30),
        lambda: session.put(url, data=open(path, "rb"), auth=("app", "password"), timeout=30),
    ]:
        response = ask()
        response.raise_for_status()
        response.status, response.read = response.status_code, lambda response=response: response.content
        yield response
    assert session.head(url, timeout=30).status_code == 200


responses = {"http.client": with_http_client, "requests": with_requests}[library]()
assert [(response.status, expected in response.read()) for response in responses] == [(200, True)] * 3
