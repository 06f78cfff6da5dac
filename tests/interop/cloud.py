#!/usr/bin/env python3
"""A private cloud on Python's HTTP server: an issuer, an echo, and files of any size.

Prints the port that it listens on. `GET /revoke` (sent directly, not through the proxy) revokes all tokens that were
granted so far.
"""

import hashlib
import http.server
import json
import threading
import urllib.parse

LOCK = threading.Lock()
GRANTED = 0
PIECE = bytes(65536)


class Cloud(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def is_allowed(self):
        with LOCK:
            return self.headers.get_all("Authorization") == [f"Bearer python-{GRANTED}"]

    def handle_expect_100(self):
        # No 100 (Continue) for a request that gets a 401.
        if not self.is_allowed():
            self.refuse()
            return False
        return super().handle_expect_100()

    def refuse(self):
        self.close_connection = True
        self.say(401, {"code": 401, "success": False})

    def say(self, status, response):
        body = json.dumps(response).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def pieces(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            piece = self.rfile.read(min(left, len(PIECE)))
            left -= len(piece)
            yield piece

    def do_GET(self):
        global GRANTED
        target = urllib.parse.urlsplit(self.path)
        if target.path == "/api/refreshToken.do":
            with LOCK:
                GRANTED += 1
                self.say(200, {"access_token": f"python-{GRANTED}", "refresh_token": "next", "expires_in": 3600})
        elif target.path == "/revoke":
            with LOCK:
                GRANTED += 1
            self.say(200, {"granted": GRANTED})
        elif not self.is_allowed():
            self.refuse()
        elif target.path == "/file":
            left = int(urllib.parse.parse_qs(target.query)["size"][0])
            self.send_response(200)
            self.send_header("Content-Length", str(left))
            self.end_headers()
            while left and self.command != "HEAD":
                left -= self.wfile.write(PIECE[:left])
        else:
            sum = hashlib.sha256()
            length = 0
            for piece in self.pieces():
                sum.update(piece)
                length += len(piece)
            self.say(200, {"authorization_count": 1, "body_length": length, "body_sha256": sum.hexdigest()})

    do_HEAD = do_POST = do_PUT = do_GET


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cloud)
server.daemon_threads = True
print(server.server_address[1], flush=True)
server.serve_forever()
