"""The real system under chaos: every part its own process, each begun again when it has ended, as Compose would."""

import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from redis import Redis

from api.auth import create_token
from api.client import Loraq
from api.processes import Child
from api.servers import RedisServer, S3Server, free_port
from jobs.settings import Settings
from jobs.storage import Storage
from jobs.store import Store, open_store
from jobs.uri import S3Uri
from tests.chaos.processes import child_of, processes_of, send
from tests.chaos.schedule import OWNERS
from tests.faults.proxy import Fault, FaultProxy
from tests.integration.conftest import worker_env

WORKERS = 2
LEASE_S = 2.0
GRACE_S = 10.0
MAX_FAILURES = 6
MAX_PREEMPTIONS = 20
PICTURES = 2
STEPS = 30
ANSWER_S = 3.0
"""How long a client waits for an answer: those that are frozen do not give one."""

QUICK = {
    "s3_stall_s": 2.0,
    "heartbeat_s": 0.3,
    "lease_s": LEASE_S,
    "hang_s": 60.0,
    "grace_s": GRACE_S,
    "reap_every_s": 0.3,
    "retry_wait_s": 0.1,
}
PROXY_CHANCE = 0.4
PROXY_FAULTS = {  # by number of the action
    "store_errors": ("SlowDown", "InternalError"),
    "store_resets": ("reset", "reset_body"),
    "store_truncates": ("truncate", "truncate"),
    "store_trickles": ("trickle", "stall"),
}


class System:
    """Redis, object store, API, reaper and workers in a folder of their own; a context manager.

    It lives by `keep_up`, which must be called often and from one thread.

    Args:
        settings: other than those with which chaos is quick.
    """

    def __init__(
        self, folder: Path, base_model: Path, photos: Path, workers: int = WORKERS, **settings: object
    ) -> None:
        self.folder = folder
        self._workers = [f"worker-{number}" for number in range(workers)]
        self._other_settings = settings
        self._base_model, self._photos = base_model, photos
        self._processes: dict[str, Child] = {}
        self._later: list[tuple[float, Callable[[], object]]] = []  # what ends a fault, and when, monotonic
        self._away: set[str] = set()
        self.calm_s = 0.0  # how long it has been without a fault, in all
        self._kept_up_s = time.monotonic()
        self.clients: dict[str, Loraq] = {}

    def __enter__(self) -> "System":
        for bucket in ("datasets", "models", "outputs"):
            (self.folder / "s3" / bucket).mkdir(parents=True)
        self.redis = RedisServer(self.folder / "redis")
        self.s3 = S3Server(self.folder / "s3", "chaos-key", secrets.token_urlsafe(24))
        self.redis.start()
        self.s3.start()
        self.proxy = FaultProxy(self.s3.port)
        self.proxy.__enter__()
        self.settings = Settings.model_validate(
            {
                "redis_url": self.redis.url,
                "s3_endpoint_url": self.proxy.url,
                "s3_access_key_id": self.s3.access_key_id,
                "s3_secret_access_key": self.s3.secret_access_key,
                "readable": ("s3://datasets/", "s3://models/"),
                "writable": ("s3://outputs/",),
                "data_dir": self.folder / "worker",
                "device": "cpu",
                "max_failures": MAX_FAILURES,
                "max_preemptions": MAX_PREEMPTIONS,
                **(QUICK | self._other_settings),
            }
        )
        self.store: Store = open_store(self.settings)
        self.storage = Storage(self.settings.model_copy(update={"s3_endpoint_url": self.s3.endpoint_url}))
        self._fill_bucket()
        self.port = free_port()
        with Redis.from_url(self.redis.url) as redis:
            self._tokens = {owner: create_token(redis, owner) for owner in OWNERS}
        self.clients = {owner: self.client_of(owner) for owner in OWNERS}
        self.keep_up()
        deadline = time.monotonic() + 60
        while not self._api_answers():
            assert time.monotonic() < deadline, "the API does not start"
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients.values():
            client.close()
        for _, end in self._later:
            end()
        for process in self._processes.values():
            send(process.pid if process.exit_code is None else None, signal.SIGTERM)
        for process in self._processes.values():
            process.stop(2 * GRACE_S)
        self.proxy.__exit__()
        self.s3.stop()
        self.redis.stop()

    def keep_up(self) -> None:
        """End what faults are over, and begin again what has ended."""
        now_s = time.monotonic()
        if self.calm:
            self.calm_s += now_s - self._kept_up_s
        self._kept_up_s = now_s
        for at_s, end in [each for each in self._later if each[0] <= now_s]:
            self._later.remove((at_s, end))
            end()
        commands = {"api": ["api", "--port", str(self.port)], "reaper": ["api.reaper"]}
        commands |= {name: ["worker"] for name in self._workers}
        for name, command in commands.items():
            if name not in self._processes or self._processes[name].exit_code is not None:
                command = [sys.executable, "-m", *command]
                self._processes[name] = Child(name, command, self.folder / f"{name}.log", worker_env(self.settings))

    @property
    def calm(self) -> bool:
        """Whether every fault is over."""
        return not self._later

    def strike(self, kind: str, number: int, seconds: float) -> None:
        """One fault. A process that is not there at the moment cannot be struck: then nothing happens."""
        workers = [self._processes[name].pid for name in self._workers]
        at_work = [pid for pid in workers if child_of(pid)] or workers
        worker = at_work[number % len(at_work)]
        horse = child_of(worker)
        trainer = child_of(horse)
        match kind:
            case "kill_all_of_worker":
                for pid in (worker, horse, trainer):
                    send(pid, signal.SIGKILL)
            case "term_worker_twice":
                send(worker, signal.SIGTERM)
                self._after(1.1, lambda: send(worker, signal.SIGTERM))  # RQ takes two within a second for one
            case "kill_redis" | "kill_store":
                self._take_away(kind.removeprefix("kill_"), seconds)
            case "store_errors" | "store_resets" | "store_truncates" | "store_trickles":
                fault = Fault(PROXY_FAULTS[kind][number], chance=PROXY_CHANCE, after_bytes=1000)
                self.proxy.faults.append(fault)
                self._after(seconds, lambda: self.proxy.faults.remove(fault))
            case _:
                how, _, what = kind.partition("_")
                pids = {"trainer": trainer, "horse": horse, "worker": worker}
                pid = pids[what] if what in pids else self._pid(what)
                sent = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "freeze": signal.SIGSTOP}[how]
                if send(pid, sent) and how == "freeze":
                    self._after(seconds, lambda: send(pid, signal.SIGCONT))

    def client_of(self, owner: str) -> Loraq:
        """A new client."""
        return Loraq(f"http://127.0.0.1:{self.port}", self._tokens[owner], ANSWER_S, patience_s=0)

    @staticmethod
    def spec(seed: int) -> dict[str, Any]:
        """One of a few specs: what comes out of each is known from an undisturbed run."""
        return {
            "version": 1,
            "name": f"seed-{seed}",
            "base_model": "s3://models/tiny.safetensors",
            "dataset": {"uri": "s3://datasets/photos/"},
            "training": {"resolution": 64, "steps": STEPS, "seed": seed},
            "memory": {"checkpointing": "none"},
            "checkpoints": {"every_n_steps": STEPS // 10},
            "output": {"uri": "s3://outputs/chaos/"},
        }

    def trainers(self, job_id: str = "") -> list[int]:
        """Process ids of all trainers of this system, or of one job: orphans included."""
        return [each.pid for each in processes_of(self.folder) if each.is_trainer and f"/{job_id}" in each.command]

    @property
    def pids(self) -> dict[str, int]:
        """Of API, reaper and workers, as far as they run."""
        return {name: process.pid for name, process in self._processes.items() if process.exit_code is None}

    def token_of(self, owner: str) -> str:
        """The owner's token."""
        return self._tokens[owner]

    def strays(self) -> list[str]:
        """Trainers, horses, and workers that nobody looks after."""
        own = {process.pid for process in self._processes.values()}
        return [
            f"{each.pid} {each.command}"
            for each in processes_of(self.folder)
            if each.is_trainer or (each.is_worker and each.pid not in own)
        ]

    def _pid(self, name: str) -> int | None:
        server = {"redis": self.redis, "store": self.s3}.get(name)
        child = server.child if server else self._processes[name]
        return child.pid if child and child.exit_code is None else None

    def _take_away(self, name: str, seconds: float) -> None:
        """Kill a server, and start it later."""
        if name in self._away:
            return
        server = self.redis if name == "redis" else self.s3
        server.kill()
        self._away.add(name)

        def back() -> None:
            self._away.discard(name)
            server.start()

        self._after(seconds, back)

    def _after(self, seconds: float, end: Callable[[], object]) -> None:
        self._later.append((time.monotonic() + seconds, end))

    def _fill_bucket(self) -> None:
        self.storage.upload(self._base_model, S3Uri("models", "tiny.safetensors"))
        for number, picture in enumerate(sorted(self._photos.glob("*.jpg"))[:PICTURES]):
            self.storage.upload(picture, S3Uri("datasets", f"photos/{picture.name}"))
            # Short: a caption that may be cut is counted in tokens by each attempt, which imports transformers.
            self.storage.write(S3Uri("datasets", f"photos/{picture.stem}.txt"), f"photo number {number}".encode())

    def _api_answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            return False
