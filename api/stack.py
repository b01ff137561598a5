"""Everything on one machine, without Docker: Redis, S3, API and worker as child processes over one data folder.

data/loraq.json      ports and passwords, made once (0600)
data/client.json     address and token, for the CLI (0600)
data/redis/          append-only file
data/s3/             the buckets, as plain folders: copy a base model into data/s3/models/
data/worker/         downloads and caches
data/*.log           what API and worker say
"""

import fcntl
import json
import os
import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import httpx
from pydantic import BaseModel
from redis import Redis

from api.auth import remember_token
from api.client import Loraq
from api.processes import Child
from api.servers import RedisServer, S3Server, free_port, port_is_free, write_private
from jobs.settings import Settings

LOCAL_OWNER = "local"
CLIENT_FILE = "client.json"
API_START_S = 60.0
WORKER_GRACE_S = 45.0


class StackBusy(Exception):
    """Another `loraq up` runs on the same folder."""


class Address(BaseModel):
    """Where an API is, and with which token: client.json."""

    url: str
    token: str


class _Kept(BaseModel):
    """What a folder keeps over restarts: loraq.json."""

    redis_port: int
    redis_password: str
    s3_port: int
    s3_access_key_id: str
    s3_secret_access_key: str
    api_port: int
    token: str


class Stack:
    """The whole of loraq in one folder; a context manager that leaves no process behind.

    Args:
        folder: made if missing; what an earlier stack left there is found again.
        worker: whether a worker is started too.
        port: of the API; None for the one it had, or a free one.
        allow_folders: folders that a spec may name by file://.

    Raises, on entering:
        StackBusy, ServerMissing, ChildFailed.
    """

    def __init__(
        self, folder: Path, *, worker: bool = True, port: int | None = None, allow_folders: Sequence[Path] = ()
    ) -> None:
        self.folder = folder.expanduser().resolve()
        self.children: dict[str, Child] = {}
        self._with_worker = worker
        self._port = port
        self._allow_folders = tuple(path.resolve() for path in allow_folders)
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock(exits)
            self._kept = self._keep()
            self._start(exits)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()  # in reverse: worker, API, S3, Redis

    @property
    def address(self) -> Address:
        """Where the API is, with the local owner's token."""
        return Address(url=f"http://127.0.0.1:{self._kept.api_port}", token=self._kept.token)

    @property
    def env(self) -> dict[str, str]:
        """LORAQ_* for API and worker."""
        kept = self._kept
        return {
            "LORAQ_REDIS_URL": f"redis://:{kept.redis_password}@127.0.0.1:{kept.redis_port}/0",
            "LORAQ_S3_ENDPOINT_URL": f"http://127.0.0.1:{kept.s3_port}",
            "LORAQ_S3_ACCESS_KEY_ID": kept.s3_access_key_id,
            "LORAQ_S3_SECRET_ACCESS_KEY": kept.s3_secret_access_key,
            "LORAQ_DATA_DIR": str(self.folder / "worker"),
            "LORAQ_ALLOWED_FOLDERS": ",".join(map(str, self._allow_folders)),
        }

    @property
    def settings(self) -> Settings:
        """The same as API and worker read from `env`."""
        return Settings.model_validate({name.removeprefix("LORAQ_").lower(): value for name, value in self.env.items()})

    def client(self) -> Loraq:
        """A client of the local owner's."""
        return Loraq(self.address.url, self.address.token)

    def check(self) -> None:
        """Raise ChildFailed if one of the processes has ended."""
        for child in self.children.values():
            child.check()

    def run(self) -> None:
        """Watch until interrupted. Raises ChildFailed when one of the processes ends."""
        while True:
            self.check()
            time.sleep(0.5)

    def _lock(self, exits: ExitStack) -> None:
        lock = exits.enter_context((self.folder / "lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackBusy(
                f"Another `loraq up` runs on {self.folder}. Use that one, or name another --data."
            ) from None

    def _keep(self) -> _Kept:
        """What the folder keeps, with other ports where something else listens by now."""
        file = self.folder / "loraq.json"
        if file.exists():
            kept = _Kept.model_validate_json(file.read_text())
        else:
            kept = _Kept(
                redis_port=free_port(),
                redis_password=secrets.token_urlsafe(24),
                s3_port=free_port(),
                s3_access_key_id="loraq-local",
                s3_secret_access_key=secrets.token_urlsafe(24),
                api_port=free_port(),
                token=f"lrq_{secrets.token_urlsafe(32)}",
            )
        if self._port is not None:
            kept = kept.model_copy(update={"api_port": self._port})
        moved = {name: free_port() for name in ("redis_port", "s3_port") if not port_is_free(getattr(kept, name))}
        if self._port is None and not port_is_free(kept.api_port):
            moved["api_port"] = free_port()
        kept = kept.model_copy(update=moved)
        write_private(file, kept.model_dump_json(indent=2))
        return kept

    def _start(self, exits: ExitStack) -> None:
        kept, settings = self._kept, self.settings
        redis = exits.enter_context(RedisServer(self.folder / "redis", kept.redis_port, kept.redis_password))
        for bucket in settings.buckets:
            (self.folder / "s3" / bucket).mkdir(parents=True, exist_ok=True)
        s3 = exits.enter_context(
            S3Server(self.folder / "s3", kept.s3_access_key_id, kept.s3_secret_access_key, kept.s3_port)
        )
        if redis.child is not None and s3.child is not None:
            self.children |= {"redis": redis.child, "s3": s3.child}
        with Redis.from_url(redis.url) as connection:
            remember_token(connection, kept.token, LOCAL_OWNER, "loraq up")
        self._start_child(exits, "api", ["api", "--port", str(kept.api_port)], grace_s=10)
        self.children["api"].wait_until(self._api_answers, API_START_S)
        if self._with_worker:
            self._start_child(exits, "worker", ["worker"], grace_s=WORKER_GRACE_S)
        write_private(self.folder / CLIENT_FILE, self.address.model_dump_json(indent=2))

    def _start_child(self, exits: ExitStack, name: str, module: Sequence[str], grace_s: float) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith("LORAQ_S3_")} | self.env
        command = [sys.executable, "-m", *module]
        child = Child(f"The {name}", command, self.folder / f"{name}.log", env)
        exits.callback(child.stop, grace_s)
        self.children[name] = child

    def _api_answers(self) -> bool:
        try:
            return httpx.get(f"{self.address.url}/readyz", timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False


def read_address(folder: Path) -> Address | None:
    """What `loraq up` left for the CLI in its data folder; None if nothing."""
    try:
        return Address.model_validate(json.loads((folder / CLIENT_FILE).read_text()))
    except FileNotFoundError:
        return None
