#!/usr/bin/env python3
"""CPU time per request, as a ratio to nginx that injects a static header.

Both proxies use the same upstream, an nginx that serves a file of 1 KiB. Each has one worker, pinned to one core; upstream
and load generator share another. Runs are interleaved, because the speed of the machine drifts; the result is the median
of the ratios. CPU time is utime + stime of the proxy's process. Needs nginx, wrk and taskset (Debian: nginx-light, wrk, util-linux), and a
release build of bearer-proxy.

    cargo build --release && benches/compare_nginx.py
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOKEN = "0123456789abcdef0123456789abcdef"
TICK = os.sysconf("SC_CLK_TCK")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def nginx_config(folder, name, http):
    path = folder / f"{name}.conf"
    path.write_text(f"""
worker_processes 1; daemon off; master_process off; pid {folder}/{name}.pid; error_log {folder}/{name}.err;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 1000000000; {http} }}
""")
    return path


def cloud_config(folder, port):
    """An nginx that serves a file of 1 KiB and issues tokens."""
    (folder / "file").write_bytes(b"x" * 1024)
    grant = json.dumps({"access_token": TOKEN, "refresh_token": "r", "expires_in": 3600})
    return nginx_config(folder, "upstream", f"server {{ listen 127.0.0.1:{port}; root {folder}; location / {{ }} location /api/refreshToken.do {{ default_type application/json; return 200 '{grant}'; }} }}")


def proxy_config(folder, port, upstream_port):
    path = folder / "proxy.toml"
    path.write_text(f"""
[proxy]
listen = ["127.0.0.1:{port}"]
workers = 1
[upstream]
endpoints = ["http://127.0.0.1:{upstream_port}"]
[token]
client_id = "bench"
client_secret = "bench"
refresh_token = "bench"
[log]
level = "error"
""")
    return path


def cpu_seconds(process):
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def wait_until_it_serves(port, process, deadline):
    while True:
        if process.poll() is not None:
            sys.exit(f"a server ended with exit code {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/file", timeout=2) as response:
                if len(response.read()) == 1024:
                    return
        except (OSError, urllib.error.URLError):
            pass
        if time.monotonic() > deadline:
            sys.exit(f"nothing serves on port {port}")
        time.sleep(0.05)


def measure(core, port, process, seconds, connections):
    before = cpu_seconds(process)
    command = ["taskset", "-c", core, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"http://127.0.0.1:{port}/file"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = cpu_seconds(process) - before
    if "Non-2xx" in report or "Socket errors" in report:
        sys.exit(f"not every request succeeded:\n{report}")
    return used / int(re.search(r"(\d+) requests in", report).group(1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="interleaved pairs")
    parser.add_argument("--seconds", type=int, default=3, help="length of one run")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--binary", default=str(ROOT / "target/release/bearer-proxy"))
    parser.add_argument("--at-most", type=float, default=1.25, help="exit 1 if the ratio is above this")
    args = parser.parse_args()
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    cores = sorted(os.sched_getaffinity(0))
    proxy_core, load_core = str(cores[0]), str(cores[-1])

    upstream_port, nginx_port, our_port = free_ports(3)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        upstream = cloud_config(folder, upstream_port)
        proxy = nginx_config(folder, "proxy", f"""
            upstream cloud {{ server 127.0.0.1:{upstream_port}; keepalive 128; keepalive_requests 1000000000; }}
            server {{ listen 127.0.0.1:{nginx_port}; location / {{ proxy_pass http://cloud; proxy_http_version 1.1;
                proxy_set_header Connection ""; proxy_set_header Authorization "Bearer {TOKEN}";
                proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Host $http_host;
                proxy_set_header X-Forwarded-Proto $scheme; }} }}""")
        ours = proxy_config(folder, our_port, upstream_port)
        servers = []
        try:
            def start(core, command):
                servers.append(subprocess.Popen(["taskset", "-c", core, *command], stdout=subprocess.DEVNULL))
                return servers[-1]

            deadline = time.monotonic() + 20
            wait_until_it_serves(upstream_port, start(load_core, [nginx, "-p", name, "-c", str(upstream)]), deadline)
            theirs = start(proxy_core, [nginx, "-p", name, "-c", str(proxy)])
            mine = start(proxy_core, [args.binary, "run", "--config", str(ours)])
            wait_until_it_serves(nginx_port, theirs, deadline)
            wait_until_it_serves(our_port, mine, deadline)

            ratios = []
            for run in range(args.runs):
                of_nginx = measure(load_core, nginx_port, theirs, args.seconds, args.connections)
                of_ours = measure(load_core, our_port, mine, args.seconds, args.connections)
                ratios.append(of_ours / of_nginx)
                print(f"run {run + 1}: nginx {of_nginx * 1e6:.1f} µs, bearer-proxy {of_ours * 1e6:.1f} µs CPU per request, ratio {ratios[-1]:.3f}", flush=True)
        finally:
            for server in servers:
                server.terminate()
            for server in servers:
                server.wait()
    ratio = statistics.median(ratios)
    print(f"median ratio to nginx over {args.runs} interleaved runs: {ratio:.3f} (at most {args.at_most})")
    sys.exit(0 if ratio <= args.at_most else 1)


if __name__ == "__main__":
    main()
