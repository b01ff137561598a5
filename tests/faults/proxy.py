"""A proxy before the object store that answers as bad networks and busy stores do.

Clients sign for its address, and the store checks the signature against the Host header, which passes unchanged.
"""

import http.client
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ERRORS = {
    "InternalError": 500,
    "ServiceUnavailable": 503,
    "SlowDown": 503,
    "ExpiredToken": 403,
    "InsufficientStorage": 507,
}
KINDS = (*ERRORS, "reset", "reset_body", "truncate", "trickle", "stall", "late")
LATE_S = 2.0
"""How long an answer that is late is held back, when what was asked for has been done."""


@dataclass
class Fault:
    """What happens to the requests that it is meant for."""

    kind: str  # one of KINDS
    method: str = ""  # "" for any
    path: str = ""  # what the path contains
    times: int | None = None  # how many requests; None: every one
    after_bytes: int = 0  # truncate, trickle, reset_body: what comes well before
    chance: float = 1.0  # for each request


class FaultProxy:
    """Passes requests on to `127.0.0.1:port`; a context manager."""

    def __init__(self, port: int, seed: int = 0) -> None:
        self.requests: list[tuple[str, str, str]] = []  # method, path, Range
        self.faults: list[Fault] = []
        self.hit = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def handle_one(self) -> None:
                proxy.pass_on(self, port)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def fault(self, kind: str, **which: Any) -> Iterator[Fault]:
        """A fault while the context lasts."""
        assert kind in KINDS
        fault = Fault(kind, **which)
        self.faults.append(fault)
        yield fault
        self.faults.remove(fault)

    def _fault_of(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.method not in ("", method) or fault.path not in path or fault.times == 0:
                    continue
                if self._random.random() < fault.chance:
                    fault.times = None if fault.times is None else fault.times - 1
                    self.hit += 1
                    return fault
        return None

    def pass_on(self, client: BaseHTTPRequestHandler, port: int) -> None:
        """One request."""
        client.close_connection = True
        self.requests.append((client.command, client.path, client.headers.get("Range", "")))
        fault = self._fault_of(client.command, client.path)
        if fault is not None and fault.kind == "reset":
            _reset(client)
            return
        if client.headers.get("Expect") == "100-continue":
            client.send_response_only(100)
            client.end_headers()
        body = client.rfile.read(int(client.headers.get("Content-Length", 0)))
        if fault is not None and fault.kind == "stall":
            self._closing.wait(60)
            return
        if fault is not None and fault.kind in ERRORS:
            _refuse(client, fault.kind)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            upstream.putrequest(client.command, client.path, skip_host=True, skip_accept_encoding=True)
            for name, value in client.headers.items():
                if name.lower() not in ("connection", "expect"):
                    upstream.putheader(name, value)
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            data = answer.read()
        except OSError:
            _reset(client)
            return
        finally:
            upstream.close()
        if fault is not None and fault.kind == "late":
            self._closing.wait(LATE_S)
        client.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                client.send_header(name, value)
        length = answer.getheader("Content-Length") if client.command == "HEAD" else str(len(data))
        client.send_header("Content-Length", length or "0")
        client.send_header("Connection", "close")
        client.end_headers()
        if client.command != "HEAD":
            self._send_body(client, data, fault)

    def _send_body(self, client: BaseHTTPRequestHandler, data: bytes, fault: Fault | None) -> None:
        try:
            if fault is None or fault.kind == "late" or len(data) <= fault.after_bytes:
                client.wfile.write(data)
                return
            client.wfile.write(data[: fault.after_bytes])
            if fault.kind == "reset_body":
                client.wfile.flush()
                _reset(client)
            elif fault.kind == "trickle":
                for byte in data[fault.after_bytes :]:
                    client.wfile.write(bytes([byte]))
                    client.wfile.flush()
                    if self._closing.wait(0.2):
                        return
        except OSError:
            pass  # the client has had enough


def _refuse(client: BaseHTTPRequestHandler, code: str) -> None:
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>A fault of the test</Message></Error>".encode()
    client.send_response_only(ERRORS[code])
    client.send_header("Content-Type", "application/xml")
    client.send_header("Content-Length", str(len(text)))
    client.send_header("Connection", "close")
    client.end_headers()
    if client.command != "HEAD":
        client.wfile.write(text)


def _reset(client: BaseHTTPRequestHandler) -> None:
    """End the connection with a reset, not in order."""
    client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.connection.close()
