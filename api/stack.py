"""Everything on one machine, without Docker and without root: Redis, an object store, the API and a worker.

    with Stack(Path(".loraq")) as stack:
        with stack.client() as loraq:
            loraq.submit(...)

All data lies in one folder and is found again: `redis/`, `s3/` (buckets and objects as plain folders and files),
`worker/` (caches), `logs/`, `state.json` (ports and credentials) and `client.json` (how the CLI gets in). Redis and the
object store keep their logs beside their data.
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Self

import httpx
from redis import Redis

from api.auth import remember_token
from api.client import Loraq
from api.processes import Child
from api.servers import RedisServer, S3Server, write_private
from api.stack_state import CLIENT_FILE, ClientFile, FolderLock, StackState
from jobs.gpus import look
from jobs.settings import Settings
from jobs.workers import workers

OWNER = "local"
API_START_S = 30.0
WORKER_START_S = 60.0

# The folder that holds our packages. Children run in it, so that `python -m api` finds ours, whatever packages lie in
# the folder in which the user called us.
_PACKAGES = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Part:
    """One running part, for a table."""

    name: str
    where: str
    pid: int
    log: Path


class Stack:
    """All parts as child processes, which end with this one however it ends.

    Args:
        folder: where all data lies; made if it is not there.
        worker: whether to start a worker; without one, jobs wait.
        port: of the API; None for that of the last start, or a free one.
        allow_folders: folders that file:// in a spec may name.
    """

    def __init__(
        self, folder: Path, worker: bool = True, port: int | None = None, allow_folders: Sequence[Path] = ()
    ) -> None:
        self.folder = folder.resolve()
        self._with_worker = worker
        self._port = port
        self._allow_folders = [folder.resolve() for folder in allow_folders]
        self._children: list[Child] = []  # in the order of their start
        self.parts: list[Part] = []

    # -- what it is when it runs --------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where the API is."""
        return f"http://127.0.0.1:{self._state.api_port}"

    @property
    def token(self) -> str:
        """A token of the owner `local`."""
        return self._state.token

    @property
    def env(self) -> dict[str, str]:
        """The LORAQ_* variables that API and worker run with, secrets included."""
        return {
            "LORAQ_REDIS_URL": self._redis.url,
            "LORAQ_S3_ENDPOINT_URL": self._s3.endpoint_url,
            "LORAQ_S3_ACCESS_KEY_ID": self._s3.access_key_id,
            "LORAQ_S3_SECRET_ACCESS_KEY": self._s3.secret_access_key,
            # One person's machine: every owner may read and write everywhere.
            "LORAQ_READABLE": "s3://datasets/,s3://models/,s3://outputs/",
            "LORAQ_WRITABLE": "s3://outputs/",
            "LORAQ_DATA_DIR": str(self.folder / "worker"),
            "LORAQ_ALLOWED_FOLDERS": ",".join(map(str, self._allow_folders)),
        }

    @property
    def settings(self) -> Settings:
        """The same as Settings; what `env` leaves open comes from the environment, as it does for the children."""
        return Settings.model_validate({name.removeprefix("LORAQ_").lower(): value for name, value in self.env.items()})

    def client(self) -> Loraq:
        """A client as the owner `local`."""
        return Loraq(self.url, self.token)

    # -- start and end ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all parts, each when those it leans on answer.

        Raises:
            FolderInUse, ServerMissing, ChildFailed: nothing is left running then.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = FolderLock(self.folder)
        try:
            self._start_parts()
        except BaseException:
            self.close()
            raise

    def watch(self, stop: Event) -> None:
        """Return when `stop` is set.

        Raises:
            ChildFailed: a part has ended by itself.
        """
        while not stop.wait(0.3):
            for child in self._children:
                child.check()

    def close(self) -> None:
        """End all parts, those first that lean on others. The worker's trainer may take `grace_s` to stop."""
        for child in reversed(self._children):
            child.stop(grace_s=self.settings.grace_s + 15)
        self._children.clear()
        self.parts.clear()
        self._lock.release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- part by part -------------------------------------------------------------------------------------------------

    def _start_parts(self) -> None:
        self._state = state = StackState.load(self.folder, self._port)
        self._redis = RedisServer(self.folder / "redis", state.redis_port, state.redis_password)
        self._s3 = S3Server(self.folder / "s3", state.s3_access_key_id, state.s3_secret_access_key, state.s3_port)
        self._redis.start()
        self._add("Redis", f"127.0.0.1:{self._redis.port}", self._redis.child, self._redis.log)
        for bucket in self.settings.buckets:
            (self._s3.folder / bucket).mkdir(parents=True, exist_ok=True)
        self._s3.start()
        self._add("Object store", self._s3.endpoint_url, self._s3.child, self._s3.log)
        with Redis.from_url(self._redis.url) as redis:
            remember_token(redis, self.token, OWNER, "made by loraq up")
            self._start_api()
            reaper = self._python("reaper", "api.reaper")
            self._add("Reaper", "beside the API", reaper, reaper.log)
            if self._with_worker:
                self._start_worker(redis)
        write_private(self.folder / CLIENT_FILE, ClientFile(url=self.url, token=self.token).model_dump_json(indent=2))

    def _start_api(self) -> None:
        child = self._python("api", "api", "--port", str(self._state.api_port))
        self._add("API", self.url, child, child.log)
        child.wait_until(self._api_is_ready, API_START_S)

    def _start_worker(self, redis: "Redis") -> None:
        cpu = self.settings.device == "auto" and not look().gpus
        # One person's machine: better slowly than not at all.
        env = {"LORAQ_DEVICE": "cpu"} if cpu else {}
        if self.settings.metrics_port is not None:  # the API has that one
            env["LORAQ_METRICS_PORT"] = str(self.settings.metrics_port + 1)
        child = self._python("worker", "worker", env=env)
        where = "no GPU: it trains on the CPU" if cpu else f"queue {self.settings.queue}"
        self._add("Worker", where, child, child.log)
        child.wait_until(lambda: self._worker_is_ready(redis, child.pid), WORKER_START_S)

    def _python(self, name: str, module: str, *arguments: str, env: Mapping[str, str] | None = None) -> Child:
        """`python -m module`, with settings and secrets in its environment, where no process list shows them."""
        direct = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))
        own = os.environ | self.env | {"NO_PROXY": direct, "no_proxy": direct} | dict(env or {})
        command = [sys.executable, "-m", module, *arguments]
        return Child(f"The {name}", command, self.folder / "logs" / f"{name}.log", own, _PACKAGES)

    def _add(self, name: str, where: str, child: Child | None, log: Path) -> None:
        assert child is not None
        self._children.append(child)
        self.parts.append(Part(name, where, child.pid, log))

    def _api_is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def _worker_is_ready(self, redis: "Redis", pid: int) -> bool:
        """Whether this very process has said that it lives; workers of earlier starts may still be listed."""
        return any((worker.host, worker.pid) == (socket.gethostname(), pid) for worker in workers(redis))
