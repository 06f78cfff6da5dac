#!/usr/bin/env python3
"""What one bad node beside two good ones costs: requests, failures, latency, and the share of the bad node.

Twelve clients, each with one connection and one request at a time, send GETs for eight seconds through the proxy to
three nodes that respond after 20 ms. One of the nodes is bad, each time in another way. Before each run, the same clients
use the two good nodes alone: the results are ratios to that, because the speed of the machine drifts. Prints a Markdown
table. A request fails if its status is not 200 or its response is not complete; *waiting* are those without a response
at the end. The share of the bad node is that of requests that reached it or tried to. Needs Linux and a release build of
bearer-proxy.

With `--open SHARE` the requests come at a fixed rate instead, this share of what the twelve clients get from two good
nodes: each on a connection that is free, or on a new one, whether the others have their responses or not. Latency counts
from the moment at which a request was due.

    cargo build --release && benches/nodes.py && benches/nodes.py --open 0.6
"""
import argparse
import asyncio
import json
import os
import pathlib
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from compare_nginx import ROOT, free_ports

DELAY = 0.020
KINDS = {
    "none": "three good nodes",
    "killed": "killed after 2 s, under load",
    "refusing": "refuses connections",
    "black hole": "drops SYNs",
    "reset": "accepts and resets at once",
    "closing": "accepts and closes at once",
    "503": "responds 503 at once",
    "401": "responds 401 to every token",
    "slow": "takes 1 s",
    "silent": "accepts, reads, never responds",
    "stopped": "stopped (SIGSTOP)",
}
# The proxy counts what does not reach a process.
COUNTED_BY_PROXY = {"killed", "refusing", "black hole"}
KILL_AFTER = 2
MOST_AT_ONCE = 300  # of `--open`


# A node: a process of its own, so that it can be killed and stopped.

class Connection(asyncio.Protocol):
    def __init__(self, node):
        self.node, self.head = node, b""

    def connection_made(self, transport):
        self.transport = transport
        if self.node.kind in ("reset", "closing"):
            self.node.seen()
            if self.node.kind == "reset":
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()

    def data_received(self, data):
        self.head += data
        while b"\r\n\r\n" in self.head:
            head, self.head = self.head.split(b"\r\n\r\n", 1)
            if head.startswith(b"POST /api/refreshToken.do"):
                self.node.seen()
                grant = json.dumps({"access_token": f"token-{time.monotonic_ns()}", "refresh_token": "next", "expires_in": 3600})
                self.respond("200 OK", grant, "Content-Type: application/json\r\n")
                continue
            self.node.seen()
            match self.node.kind:
                case "503":
                    self.respond("503 Service Unavailable", "")
                case "401":
                    self.respond("401 Unauthorized", "", 'WWW-Authenticate: Bearer error="invalid_token"\r\n')
                case "silent":
                    pass
                case kind:
                    asyncio.get_running_loop().call_later(1 if kind == "slow" else DELAY, self.respond, "200 OK", "x" * 100)

    def respond(self, status, body, fields=""):
        if not self.transport.is_closing():
            self.transport.write(f"HTTP/1.1 {status}\r\n{fields}Content-Length: {len(body)}\r\n\r\n{body}".encode())


class Node:
    def __init__(self, kind, log):
        self.kind, self.log = kind, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def seen(self):
        # A file survives SIGKILL.
        os.write(self.log, struct.pack("d", time.monotonic()))

    async def serve(self, address, port):
        server = await asyncio.get_running_loop().create_server(lambda: Connection(self), address, port)
        await server.serve_forever()


class Started:
    """A node as the measurement sees it."""

    def __init__(self, folder, kind, address, port):
        self.kind, self.address, self.port, self.log = kind, address, port, folder / f"node-{address}-{port}.log"
        self.held, self.process = [], None
        if kind == "refusing":
            self.held.append(bound(address, port))
        elif kind == "black hole":
            self.held.append(bound(address, port))
            self.held[0].listen(0)
            while True:  # A connection beyond the backlog gets no response.
                filler = socket.socket()
                filler.settimeout(0.2)
                self.held.append(filler)
                try:
                    filler.connect((address, port))
                except TimeoutError:
                    break
        else:
            self.process = subprocess.Popen([sys.executable, __file__, "--serve", kind, str(self.log), address, str(port)])
            until(lambda: accepts(address, port))

    def origin(self):
        return f"http://{self.address}:{self.port}"

    def times(self):
        return [one for (one,) in struct.iter_unpack("d", self.log.read_bytes())] if self.log.exists() else []

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
        for one in self.held:
            one.close()


def bound(address, port):
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((address, port))
    return one


def accepts(address, port):
    try:
        socket.create_connection((address, port), 1).close()
        return True
    except OSError:
        return False


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        if time.monotonic() > end:
            sys.exit("a server does not start")
        time.sleep(0.02)


# The clients.

async def send(port, stream):
    """Sends a request, on a new connection if `stream` is None. Returns the connection and the failure."""
    try:
        reader, writer = stream or await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /file HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        await reader.readexactly(int(re.search(r"(?i)content-length: (\d+)", head).group(1)))
        return (reader, writer), None if head.startswith("HTTP/1.1 200 ") else head.split(" ")[1]
    except (OSError, EOFError, AttributeError) as error:
        return None, type(error).__name__


async def client(port, end, done):
    """Sends one request after the other until `end`. Appends (begin, duration, failure) for each."""
    stream = None
    while (begin := time.monotonic()) < end:
        stream, failure = await send(port, stream)
        if stream is None:
            await asyncio.sleep(0.001)
        done.append((begin, time.monotonic() - begin, failure))


async def request(port, due, free, done):
    """Sends one request on a free connection."""
    stream, failure = await send(port, free.pop() if free else None)
    if stream:
        free.append(stream)
    done.append((due, time.monotonic() - due, failure))


async def arrivals(port, rate, begin, end, done):
    """Begins `rate` requests a second until `end`. Returns those under way."""
    free, under_way, due = [], set(), begin
    while due < end:
        await asyncio.sleep(max(0, due - time.monotonic()))
        if len(under_way) < MOST_AT_ONCE:
            task = asyncio.create_task(request(port, due, free, done))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        else:
            done.append((due, 0, "too many at once"))
        due += 1 / rate
    return under_way


async def fetch(port, path):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    text = (await reader.read()).decode()
    writer.close()
    return text


async def watch(admin, node, samples):
    """Samples (moment, whether the node is in, connections to it that failed) ten times a second."""
    label = re.escape(node.origin())
    while True:
        text = await fetch(admin, "/metrics")
        healthy = re.search(rf'endpoint_healthy{{[^}}]*"{label}"[^}}]*}} (\d)', text)
        failed = re.findall(rf'upstream_errors_total{{[^}}]*"{label}"[^}}]*error="connect_[^}}]*}} (\d+)', text)
        samples.append((time.monotonic(), healthy is None or healthy.group(1) == "1", sum(map(int, failed))))
        await asyncio.sleep(0.1)


async def kill_later(bad):
    await asyncio.sleep(KILL_AFTER)
    bad.process.kill()


async def load(port, admin, connections, rate, seconds, bad):
    done, samples = [], []
    begin = time.monotonic()
    end = begin + seconds
    watcher = asyncio.create_task(watch(admin, bad, samples)) if bad else None
    killer = asyncio.create_task(kill_later(bad)) if bad and bad.kind == "killed" else None
    if rate:
        clients = list(await arrivals(port, rate, begin, end, done))
    else:
        clients = [asyncio.create_task(client(port, end, done)) for _ in range(connections)]
    waiting = []
    if clients:
        _, waiting = await asyncio.wait(clients, timeout=end + 0.5 - time.monotonic())
    for one in filter(None, [watcher, killer, *waiting]):
        one.cancel()
    return begin, done, len(waiting), samples


def run(args, kind, rate=None):
    """One run. `kind` is None for the two good nodes alone. Without a rate, each client waits for its response."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        port, admin, issuer_port, *ports = free_ports(6)
        nodes, process = [], None
        issuer = Started(folder, "issuer", "127.0.0.1", issuer_port)
        try:
            for number in range(2 if kind is None else 3):
                nodes.append(Started(folder, kind if number == 2 else "good", f"127.0.0.{number + 2}", ports[number]))
            config = folder / "proxy.toml"
            config.write_text(f"""
[proxy]
listen = ["127.0.0.1:{port}"]
workers = {args.workers}
[upstream]
endpoints = {json.dumps([node.origin() for node in nodes])}
{args.upstream}
[token]
issuer = "{issuer.origin()}"
client_id = "bench"
client_secret = "bench"
refresh_token = "bench"
[admin]
listen = "127.0.0.1:{admin}"
[log]
level = "error"
""")
            process = subprocess.Popen([args.binary, "run", "--config", str(config)])
            until(lambda: process.poll() is not None or accepts("127.0.0.1", admin))
            until(lambda: process.poll() is not None or " 200 " in asyncio.run(fetch(admin, "/readyz")).split("\r\n")[0])
            if process.poll() is not None:
                sys.exit("the proxy does not start")
            bad = nodes[2] if kind else None
            if kind == "stopped":
                bad.process.send_signal(signal.SIGSTOP)
            calls = len(issuer.times())
            begin, done, waiting, samples = asyncio.run(load(port, admin, args.connections, rate, args.seconds, bad))
            calls = len(issuer.times()) - calls
            if kind == "stopped":
                # It reads now what it was sent.
                bad.process.send_signal(signal.SIGCONT)
                time.sleep(0.3)
            return Result(kind, begin, done, waiting, samples, calls, bad)
        finally:
            if process:
                process.terminate()
                process.wait()
            for node in [issuer, *nodes]:
                node.stop()


class Result:
    def __init__(self, kind, begin, done, waiting, samples, calls, bad):
        good = [duration for _, duration, failure in done if failure is None]
        self.done, self.waiting, self.calls = len(good), waiting, calls
        self.failures = [failure for _, _, failure in done if failure is not None]
        self.p50, self.p99 = (statistics.quantiles(good, n=100)[at] for at in (49, 98)) if len(good) > 1 else (0, 0)
        if bad is None:
            return
        is_bad_from = begin + (KILL_AFTER if kind == "killed" else 0)
        out = [moment for moment, healthy, _ in samples if not healthy]
        self.out_after = out[0] - is_bad_from if out else None
        if kind in COUNTED_BY_PROXY:
            pairs = zip(samples, samples[1:])
            tried = [moment for (_, _, before), (moment, _, after) in pairs for _ in range(after - before)]
        else:
            tried = [moment for moment in bad.times() if moment >= begin]
        sent = [moment for moment, _, _ in done] + [begin] * waiting
        last = out[0] if out else float("inf")

        def share(low, high):
            total = sum(low <= one < high for one in sent)
            return sum(low <= one < high for one in tried) / total if total else None
        self.before, self.after = share(is_bad_from, last), share(last, float("inf"))


def main():
    if sys.argv[1:2] == ["--serve"]:
        kind, log, address, port = sys.argv[2:]
        asyncio.run(Node(kind, log).serve(address, int(port)))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "target/release/bearer-proxy"))
    parser.add_argument("--connections", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--open", type=float, metavar="SHARE", help="requests at a fixed rate")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only these")
    parser.add_argument("--upstream", default="", help="further lines of [upstream]")
    args = parser.parse_args()

    def percent(share):
        return "–" if share is None else f"{100 * share:.1f} %"
    rate = None
    if args.open:
        rate = args.open * run(args, None).done / args.seconds
        print(f"{rate:.0f} requests a second\n")
    print("| third node | requests | of two good nodes | failed | waiting | p50 | p99 | p99 of two good nodes | its share before | after ejection | ejected after | issuer calls |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for kind in args.kind or KINDS:
        two, it = run(args, None, rate), run(args, kind, rate)
        if two.failures:
            sys.exit(f"requests to two good nodes failed: {two.failures[:5]}")
        ejected = "–" if it.out_after is None else f"{it.out_after:.1f} s"
        print(f"| {KINDS[kind]} | {it.done} | {percent(it.done / two.done)} | {len(it.failures)} | {it.waiting} | {it.p50 * 1e3:.0f} ms | {it.p99 * 1e3:.0f} ms "
              f"| {two.p99 * 1e3:.0f} ms | {percent(it.before)} | {percent(it.after)} | {ejected} | {it.calls} |", flush=True)


if __name__ == "__main__":
    main()
