#!/usr/bin/env python3
"""Third-party clients and servers: the outcome through the proxy is the same as without it.

Usage: same_outcome.py PROGRAM [SCENARIO...]

A scenario is a client (a program in `clients/`) and a server. It runs against the server itself,
and then through the proxy PROGRAM, which uses HTTP/1.1 or HTTP/2 towards the server (rclone: HTTP/2
over TLS). Apache accepts each token a limited number of times, so that the proxy refreshes and
replays while the client works. The outcome is what the client printed, its exit code, the files
that it left in its folder, and what the server stores in the end. With SCENARIOs, only those run.
"""

import contextlib
import difflib
import hashlib
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

SOURCE = pathlib.Path(__file__).resolve().parent
IS_ROOT = os.getuid() == 0
READY_SECONDS = 30
CLIENT_SECONDS = 180

# Client, server, path of the client's URL.
SCENARIOS = [
    ("litmus.sh", "Apache", "/"),
    ("litmus.sh", "rclone", "/"),
    ("cadaver.sh", "Apache", "/"),
    ("cadaver.sh", "rclone", "/"),
    ("davfs2.sh", "Apache", "/"),
    ("davfs2.sh", "rclone", "/"),
    ("rclone.sh", "Apache", ""),
    ("rclone.sh", "rclone", ""),
    ("svn.sh", "Apache", "/svn"),
    ("git.sh", "Apache", "/git/repository.git"),
    ("git_http_push.sh", "Apache", ""),
    ("wget.sh", "Apache", ""),
    ("wget.sh", "rclone", ""),
    ("curl.sh", "Apache", ""),
    ("curl.sh", "rclone", ""),
    ("lwp.pl", "Apache", ""),
    ("lwp.pl", "rclone", ""),
    ("java.sh", "Apache", ""),
    ("java.sh", "rclone", ""),
]

# What differs between two runs of the same client against the same server, and its replacement.
VOLATILE = [
    (r"\b\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?[+-]\d{4}|Z)?", "DATE"),
    (r"\b\w{3}, \d\d \w{3} \d{4}( \d\d:\d\d:\d\d GMT)?", "DATE"),
    (r"\b\w{3} {1,2}\d{1,2} {1,2}(\d\d:\d\d|\d{4})\b", "DATE"),
    (r"\b[\d.]+m?s\b( \([\d.]+ [KMG]?B/s\))?", "DURATION"),
    # Entity tags of Apache and rclone contain the time of the file.
    (r'(W/)?"[0-9a-f]+-[0-9a-f]{13}"|"[0-9a-f]{17,}"', "ETAG"),
    # Lock tokens of Apache and rclone.
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|(?<=[<>])\d{10}(?=[<>])", "LOCK"),
    # The boundary of a multipart response.
    (r"(?<=--|y=)[0-9a-f]{12,}\b", "BOUNDARY"),
    # A dot for each piece that cadaver has received by chance at once.
    (r"(?<=: \[)\.+(?= succeeded)", "PROGRESS"),
    # Apache lists namespaces in random order.
    (r'( xmlns:lp\d="[^"]*")+', " NAMESPACES"),
]

# Documented differences: whole lines, and their replacement; None removes the line. Field names are
# compared in lower case where the server uses HTTP/2, which has no other.
EXCEPTIONS = [
    # Added to responses that do not say whether they may be shared.
    (r"cache-control: private", None),
    # Hop-by-hop fields.
    (r"(connection|keep-alive|upgrade): .*", None),
    # The version is that of the request.
    (r"HTTP/1\.[01] (.*)", r"HTTP/1.x \1"),
]
HTTP2_EXCEPTIONS = [
    # HTTP/2 has no reason phrases.
    (r"(HTTP/1\.x \d{3}) .*", r"\1"),
]


def main(program, *selected):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    failed = False
    for client, server, path in SCENARIOS:
        name = f"{client.partition('.')[0]}, {server}"
        if selected and name not in selected:
            continue
        if client == "davfs2.sh" and (reason := mount_obstacle()):
            print(f"{name} … skipped: {reason}", flush=True)
            continue
        directly, _ = run(client, server, path)
        for http2 in [False, True]:
            print(f"{name}, {'HTTP/2' if http2 else 'HTTP/1.1'} … ", end="", flush=True)
            proxied, replays = run(client, server, path, program, http2)
            outcomes = [list(without_exceptions(lines, http2)) for lines in (directly, proxied)]
            difference = list(difflib.unified_diff(*outcomes, "directly", "through the proxy"))
            if server == "Apache" and not replays:
                difference.append("no request was replayed")
            print("failed" if difference else f"replays: {replays} … ok" if replays else "ok")
            print(*[line.rstrip("\n") + "\n" for line in difference], sep="", end="", flush=True)
            failed = failed or bool(difference)
    sys.exit(failed)


def mount_obstacle():
    """Why no file system can be mounted here, or None."""
    if not pathlib.Path("/dev/fuse").exists():
        return "there is no /dev/fuse"
    if not IS_ROOT:
        return "only root mounts file systems"


def run(client, server, path, program=None, http2=False):
    """The outcome of one run, through `program` if it is given, and the number of replays."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        prepare(folder)
        port, issuer, proxy_port, admin = free_ports(4)
        guarded = program is not None
        replays = 0
        with contextlib.ExitStack() as servers:
            if server == "Apache":
                origin = servers.enter_context(apache(folder, port, issuer, guarded, http2))
            else:
                origin = servers.enter_context(rclone(folder, port, http2))
                servers.enter_context(start([SOURCE / "apache/guard.py", issuer, 1], [issuer]))
            if guarded:
                proxy = bearer_proxy(program, folder, origin, issuer, proxy_port, admin, http2)
                servers.enter_context(proxy)
                port = proxy_port
            transcript = run_client(folder, client, f"http://127.0.0.1:{port}{path}")
            if guarded:
                replays = count_replays(admin)
        outcome = [normal(line, folder, port) for line in transcript]
        outcome += [f"client: {line}" for line in files(folder / "client")]
        outcome += [f"server: {line}" for line in stored(folder)]
        return outcome, replays


def prepare(folder):
    """The files of the client, the same files at the server, and empty repositories."""
    generator = random.Random(1)
    contents = {
        "empty": b"",
        "small.txt": b"a line\n" * 10,
        "medium.bin": generator.randbytes(70_000),
        "large.bin": generator.randbytes(3_000_000),
        "name with blanks.txt": b"blanks\n",
        "Grüße & Co (1)+100%.txt": b"characters\n",
        "[a]#b;c,d=e@f!$'.txt": b"more characters\n",
        "文件.txt": b"other characters\n",
        "sub/deep/file.txt": generator.randbytes(2_000).hex().encode(),
        "sub/%41.txt": b"a percent sign\n",
    }
    for root in [folder / "client/files", folder / "tree/seed"]:
        for name, content in contents.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for path in root.rglob("*"):
            os.utime(path, (1_700_000_000, 1_700_000_000))
    (folder / "home").mkdir()
    (folder / "locks").mkdir()
    repository = folder / "svn"
    quietly("svnadmin", "create", repository)
    quietly("svnadmin", "setuuid", repository, "00000000-0000-0000-0000-000000000001")
    quietly("git", "init", "--bare", "--initial-branch", "main", folder / "git/repository.git")
    # Apache and davfs2 run as other users than root.
    folder.chmod(0o755)
    if IS_ROOT:
        shared = [folder / name for name in ["tree", "locks", "svn", "git"]]
        quietly("chown", "-R", "www-data:", *shared)


@contextlib.contextmanager
def apache(folder, port, issuer, guarded, http2):
    command = ["/usr/sbin/apache2", "-f", SOURCE / "apache/apache.conf", "-D", "FOREGROUND"]
    for flag, wanted in {"ROOT": IS_ROOT, "GUARDED": guarded, "HTTP2": http2}.items():
        command += ["-D", flag] * wanted
    variables = {"FOLDER": folder, "SOURCE": SOURCE / "apache", "PORT": port, "ISSUER": issuer}
    for name, value in variables.items():
        command += ["-C", f"Define {name} {value}"]
    with start(command, [port, issuer] if guarded else [port]):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def rclone(folder, port, http2):
    command = ["rclone", "--config", "", "serve", "webdav", folder / "tree"]
    command += ["--addr", f"127.0.0.1:{port}"]
    if http2:
        certificate(folder)
        command += ["--cert", folder / "server.pem", "--key", folder / "server.key"]
    with start(command, [port]):
        yield f"{'https' if http2 else 'http'}://127.0.0.1:{port}"


def certificate(folder):
    """A self-signed certificate for 127.0.0.1."""
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=server", "-addext", "subjectAltName=IP:127.0.0.1"]
    written = ["-keyout", folder / "server.key", "-out", folder / "server.pem"]
    quietly("openssl", "req", "-x509", *new, *names, *written)


@contextlib.contextmanager
def bearer_proxy(program, folder, origin, issuer, port, admin, http2):
    configuration = folder / "proxy.toml"
    configuration.write_text(f"""
        admin.listen = "127.0.0.1:{admin}"
        proxy.listen = ["127.0.0.1:{port}"]
        upstream.endpoints = ["{origin}"]
        {'upstream.tls.ca_file = "server.pem"' if origin.startswith("https:") else ""}
        upstream.http2 = "{'always' if http2 else 'never'}"
        token.issuer = "http://127.0.0.1:{issuer}"
        token.client_id = "demo"
        token.client_secret = "secret"
        token.refresh_token = "seed"
        token.state_file = "token.json"
        retry.cooldown = "10ms"
    """)
    with start([program, "--config", configuration], [port, admin]):
        wait_until(lambda: get(f"http://127.0.0.1:{admin}/readyz"), "the proxy is not ready")
        # The first request of the client carries a revoked token.
        get(f"http://127.0.0.1:{issuer}/revoke")
        yield


def run_client(folder, client, url):
    """Runs the client in its folder. The lines that it printed, and its exit code."""
    environment = {
        "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
        "HOME": folder / "home",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }
    with open(folder / "transcript", "wb") as output:
        running = subprocess.Popen(
            [SOURCE / "clients" / client, url],
            cwd=folder / "client",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            running.wait(CLIENT_SECONDS)
        except subprocess.TimeoutExpired:
            output.write(f"no end after {CLIENT_SECONDS} s\n".encode())
        finally:
            # The processes that it started too.
            end(running, lambda signal: os.killpg(running.pid, signal))
    text = (folder / "transcript").read_bytes().decode(errors="backslashreplace")
    return [*text.splitlines(), f"exit {running.returncode}"]


@contextlib.contextmanager
def start(command, ports):
    """A server that listens on the ports; it ends with the context."""
    name = pathlib.Path(command[0]).name
    # A file, since a pipe that is not read blocks the server.
    with tempfile.TemporaryFile() as log:
        # guard.py ends with its input.
        running = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            has_ended = lambda: running.poll() is not None
            wait_until(lambda: has_ended() or all(map(accepts, ports)), f"{name} does not listen")
            if has_ended():
                raise RuntimeError(f"{name} ended with exit code {running.returncode}")
            yield
        except RuntimeError:
            log.seek(0)
            print(log.read().decode(errors="replace"), file=sys.stderr)
            raise
        finally:
            end(running, running.send_signal)


def end(running, send):
    for attempt in [signal.SIGTERM, signal.SIGKILL]:
        with contextlib.suppress(ProcessLookupError):
            send(attempt)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(READY_SECONDS)
            return


def wait_until(condition, failure):
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{failure} after {READY_SECONDS} s")
        time.sleep(0.02)


def accepts(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
        return True


def get(url):
    """The body of a response with status 200, else None."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode() or "empty"


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def quietly(*command):
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


# Outcomes.


def normal(line, folder, port):
    line = line.replace(f"127.0.0.1:{port}", "SERVER").replace(str(folder), "FOLDER")
    for pattern, replacement in VOLATILE:
        line = re.sub(pattern, replacement, line)
    return line


def without_exceptions(lines, http2):
    for line in lines:
        if http2:
            line = re.sub(r"^[A-Za-z-]+: ", lambda name: name[0].lower(), line)
        for pattern, replacement in EXCEPTIONS + HTTP2_EXCEPTIONS * http2:
            if match := re.fullmatch(pattern, line, re.IGNORECASE):
                if replacement is None:
                    break
                line = match.expand(replacement)
        else:
            yield line


def files(root):
    """Path, size and hash of each file, and the path of each folder."""
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if not path.is_file():
            yield f"{name}/"
        elif path.parent.name == ".DAV":
            # Apache's database of properties contains memory that it did not initialise.
            yield f"{name}"
        else:
            content = path.read_bytes()
            yield f"{name} {len(content)} {hashlib.sha256(content).hexdigest()}"


def stored(folder):
    """What the server stores: files, the history of the Subversion repository, all Git objects."""
    yield from files(folder / "tree")
    dump = printed("svnadmin", "dump", "--quiet", folder / "svn")
    dump = re.sub(rb"\d{4}-\d\d-\d\dT[\d:.]+Z", b"DATE", dump)
    yield f"Subversion {len(dump)} {hashlib.sha256(dump).hexdigest()}"
    git = ["git", "-c", "safe.directory=*", "-C", folder / "git/repository.git"]
    for command in [["for-each-ref"], ["cat-file", "--batch-all-objects", "--batch-check"]]:
        yield from printed(*git, *command).decode().splitlines()


def printed(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def count_replays(admin):
    pattern = r'^bearer_proxy_retries_total\{.*outcome="accepted".*\} (\d+)$'
    metrics = get(f"http://127.0.0.1:{admin}/metrics")
    return sum(map(int, re.findall(pattern, metrics, re.MULTILINE)))


main(*sys.argv[1:])
