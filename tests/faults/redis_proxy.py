"""A proxy before Redis that counts commands, and can have a process killed just before one of them arrives."""

import os
import signal
import socket
import threading


class RedisProxy:
    """Passes commands on to `127.0.0.1:port`, one by one; a context manager.

    A transaction that a client sends in one piece is passed on command by command as well: cut off in the middle, it is
    what Redis has read when a client dies then.
    """

    def __init__(self, port: int) -> None:
        self.passed: list[str] = []  # names of the commands that went through since `kill_before`
        self.killed_before: str | None = None
        self._port = port
        self._victim: int | None = None
        self._left = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> "RedisProxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def kill_before(self, number: int, pid: int) -> None:
        """Kill process `pid` with SIGKILL before its command `number`, from 0, and count from now on."""
        with self._lock:
            self.passed, self.killed_before = [], None
            self._victim, self._left = pid, number

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            server = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._commands, args=(client, server), daemon=True).start()
            threading.Thread(target=_copy, args=(server, client), daemon=True).start()

    def _commands(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, client.makefile("rb") as stream:
            while (command := _read_command(stream)) is not None:
                name, raw = command
                with self._lock:
                    if self._victim is not None and self._left == 0:
                        os.kill(self._victim, signal.SIGKILL)
                        self._victim, self.killed_before = None, name
                        return
                    self._left -= 1
                    self.passed.append(name)
                server.sendall(raw)


def _read_command(stream) -> tuple[str, bytes] | None:
    """The next command's name and bytes, as https://redis.io/docs/latest/develop/reference/protocol-spec/ says; None at
    the end.
    """
    try:
        head = stream.readline()
        if not head:
            return None
        raw, words = [head], []
        for _ in range(int(head[1:])):
            length = stream.readline()
            word = stream.read(int(length[1:]) + 2)
            raw += [length, word]
            words.append(word[:-2])
        return words[0].decode().upper(), b"".join(raw)
    except OSError:
        return None


def _copy(source: socket.socket, to: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            to.sendall(data)
    except OSError:
        pass
