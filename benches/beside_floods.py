#!/usr/bin/env python3
"""Latency of one client while others flood the same worker with HTTP/2 frames, as a ratio to its latency without them.

The proxy has one worker, pinned to one core. The client, the upstream and four attackers share another core, with the
attackers at idle priority (SCHED_IDLE), as if they ran on other machines. An attacker sends as fast as it can, reads
every response, and reconnects when its connection is closed. Rounds with and without attackers are interleaved, because
the speed of the machine drifts; the result is the median of the ratios. Needs Linux, nginx and taskset, and a release
build of bearer-proxy.

    cargo build --release && benches/beside_floods.py
"""
import argparse
import multiprocessing
import os
import pathlib
import select
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from compare_nginx import ROOT, cloud_config, free_ports, proxy_config, wait_until_it_serves

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 1, 4
# GET or POST http://localhost/file, in HPACK without the dynamic table.
GET, POST = (method + b"\x86\x04\x05/file\x01\x09localhost" for method in (b"\x82", b"\x83"))


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def streams(frames):
    return b"".join(frames(2 * n + 1) for n in range(40_000))


def attacks():
    whole = END_STREAM | END_HEADERS
    return {
        "rapid reset": lambda: streams(lambda n: frame(HEADERS, whole, n, GET) + frame(RST_STREAM, 0, n, struct.pack(">I", 8))),
        "made you reset": lambda: streams(lambda n: frame(HEADERS, whole, n, GET) + frame(WINDOW_UPDATE, 0, n, b"\x7f\xff\xff\xff")),
        "continuation": lambda: frame(HEADERS, END_STREAM, 1, GET)
        + b"".join(frame(CONTINUATION, 0, 1, b"\x10\x06x-%04d\x05value" % (n % 10000) * 20) for n in range(10_000)),
        "empty data": lambda: frame(HEADERS, END_HEADERS, 1, POST) + frame(DATA, 0, 1) * 400_000,
        "pings": lambda: frame(PING, 0, 0, bytes(8)) * 400_000,
        "settings": lambda: frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65536)) * 400_000,
        "windows": lambda: frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)) * 400_000,
    }


def flood(port, payload, core, until, disconnected):
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    while time.monotonic() < until.value:
        with socket.create_connection(("127.0.0.1", port)) as attacker:
            attacker.setblocking(False)
            rest = memoryview(PREFACE + frame(SETTINGS, 0, 0) + payload)
            try:
                while rest and time.monotonic() < until.value:
                    readable, writable, _ = select.select([attacker], [attacker], [], 0.1)
                    if readable and not attacker.recv(1 << 16):
                        break
                    if writable:
                        rest = rest[attacker.send(rest[: 1 << 16]):]
            except OSError:
                pass
        with disconnected.get_lock():
            disconnected.value += 1


def waits(port, seconds):
    """Seconds per request of a keep-alive client that pauses between requests."""
    taken = []
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.001)
            begin = time.perf_counter()
            client.sendall(b"GET /file HTTP/1.1\r\nHost: localhost\r\n\r\n")
            response = b""
            while b"\r\n\r\n" not in response or len(response.split(b"\r\n\r\n", 1)[1]) < 1024:
                more = client.recv(1 << 16)
                if not more:
                    sys.exit("the client beside the floods was cut off")
                response += more
            if not response.startswith(b"HTTP/1.1 200 "):
                sys.exit(f"the client beside the floods got {response[:40]}")
            taken.append(time.perf_counter() - begin)
    return taken


def late(taken):
    return statistics.quantiles(taken, n=100)[98]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="interleaved pairs for each attack")
    parser.add_argument("--seconds", type=float, default=2, help="length of one round")
    parser.add_argument("--binary", default=str(ROOT / "target/release/bearer-proxy"))
    parser.add_argument("--attack", help="only this one")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    proxy_core, other_core = cores[0], cores[-1]
    os.sched_setaffinity(0, {other_core})

    upstream_port, port = free_ports(2)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        upstream = cloud_config(folder, upstream_port)
        ours = proxy_config(folder, port, upstream_port)
        nginx = shutil.which("nginx") or "/usr/sbin/nginx"
        commands = [(other_core, [nginx, "-p", name, "-c", str(upstream)]), (proxy_core, [args.binary, "run", "--config", str(ours)])]
        servers = []
        try:
            for core, command in commands:
                servers.append(subprocess.Popen(["taskset", "-c", str(core), *command], stdout=subprocess.DEVNULL))
                wait = time.monotonic() + 20
                wait_until_it_serves(upstream_port if core == other_core else port, servers[-1], wait)
            for attack, payload in attacks().items():
                if args.attack not in (None, attack):
                    continue
                payload, ratios, quiet, loud = payload(), [], [], []
                disconnected = multiprocessing.Value("i", 0)
                for _ in range(args.runs):
                    quiet.append(late(waits(port, args.seconds)))
                    until = multiprocessing.Value("d", time.monotonic() + args.seconds + 0.3)
                    attackers = [multiprocessing.Process(target=flood, args=(port, payload, other_core, until, disconnected)) for _ in range(4)]
                    for attacker in attackers:
                        attacker.start()
                    time.sleep(0.2)
                    loud.append(late(waits(port, args.seconds)))
                    for attacker in attackers:
                        attacker.join()
                    ratios.append(loud[-1] / quiet[-1])
                print(f"{attack}: p99 {statistics.median(quiet) * 1e3:.2f} ms alone, {statistics.median(loud) * 1e3:.2f} ms beside floods, "
                      f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), {disconnected.value} attackers disconnected", flush=True)
        finally:
            for server in servers:
                server.terminate()
            for server in servers:
                server.wait()


if __name__ == "__main__":
    main()
