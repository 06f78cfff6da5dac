#!/usr/bin/env python3
"""gRPC: an echo server, and a client that uses all four kinds of calls.

Usage: grpc_echo.py server (prints its port), grpc_echo.py client ADDRESS
"""

import sys
from concurrent import futures

import grpc

KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]


def fail(context):
    context.set_trailing_metadata([("x-why", "because")])
    context.abort(grpc.StatusCode.NOT_FOUND, "no such file: é")


def echo_one(request, context):
    assert dict(context.invocation_metadata())["authorization"].startswith("Bearer "), "the request has no token"
    return fail(context) if request == b"fail" else request


def join(requests, context):
    return b"".join(requests)


def repeat(request, context):
    for _ in range(100):
        yield request


def echo(requests, context):
    yield from requests


def server():
    methods = dict(zip(KINDS, [echo_one, repeat, join, echo]))
    handlers = {kind: getattr(grpc, f"{kind}_rpc_method_handler")(method) for kind, method in methods.items()}
    server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Echo", handlers)])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


def client(address):
    options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
    channel = grpc.insecure_channel(address, options=options)
    unary, repeated, joined, echoed = [getattr(channel, kind)(f"/Echo/{kind}") for kind in KINDS]
    large = bytes(range(256)) * 12_000
    assert unary(b"hello", timeout=30) == b"hello"
    assert unary(large, timeout=30) == large
    assert list(repeated(b"x" * 10_000, timeout=30)) == [b"x" * 10_000] * 100
    assert joined(iter([b"a", large, b"b"]), timeout=30) == b"a" + large + b"b"
    sent = []

    def one_after_the_other():
        for n in range(50):
            sent.append(str(n).encode())
            yield sent[-1]

    for n, back in enumerate(echoed(one_after_the_other(), timeout=30)):
        assert back == sent[n]
    assert len(sent) == 50
    try:
        unary(b"fail", timeout=30)
        sys.exit("it did not fail")
    except grpc.RpcError as error:
        seen = (error.code(), error.details(), dict(error.trailing_metadata())["x-why"])
        assert seen == (grpc.StatusCode.NOT_FOUND, "no such file: é", "because"), seen
    calls = [unary.future(b"%d" % n, timeout=30) for n in range(500)]
    assert [call.result() for call in calls] == [b"%d" % n for n in range(500)]


server() if sys.argv[1] == "server" else client(sys.argv[2])
