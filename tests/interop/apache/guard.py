#!/usr/bin/env python3
"""An issuer, and the check of its tokens for Apache: each token is accepted a number of times.

Usage: guard.py PORT USES

Apache starts it as a `RewriteMap prg:`. It writes the `Authorization` field of each request as a
line, and reads "accept" or "reject". Requests to PORT go to the issuer: `/revoke` revokes the
current token, every other path responds with the next one.
"""

import http.server
import json
import sys
import threading


class Tokens:
    def __init__(self, uses):
        self.uses, self.left, self.current, self.lock = uses, 0, 0, threading.Lock()

    def issue(self):
        with self.lock:
            self.current, self.left = self.current + 1, self.uses
            return {
                "access_token": f"access-{self.current}",
                "refresh_token": f"refresh-{self.current}",
                "expires_in": 3600,
            }

    def revoke(self):
        with self.lock:
            self.left = 0
            return {}

    def accepts(self, authorization):
        with self.lock:
            accepted = authorization == f"Bearer access-{self.current}" and self.left > 0
            self.left -= accepted
            return accepted


class Issuer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(tokens.revoke() if self.path == "/revoke" else tokens.issue()).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_):
        pass


tokens = Tokens(int(sys.argv[2]))
issuer = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Issuer)
threading.Thread(target=issuer.serve_forever, daemon=True).start()
for line in sys.stdin:
    print("accept" if tokens.accepts(line.rstrip("\n")) else "reject", flush=True)
