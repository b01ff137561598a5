"""The real system under chaos: every part its own process, each begun again when it has ended, as Compose would."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from redis import Redis

from api.auth import create_token
from api.client import Loraq
from api.servers import RedisServer, S3Server, free_port
from jobs.settings import Settings
from jobs.storage import Storage
from jobs.store import Store, open_store
from jobs.uri import S3Uri
from tests.chaos.schedule import OWNERS
from tests.faults.proxy import Fault, FaultProxy
from tests.integration.conftest import worker_env

WORKERS = 2
LEASE_S = 3.0
MAX_FAILURES = 6
PICTURES = 2
PROXY_CHANCE = 0.4
PROXY_FAULTS = {  # by number of the action
    "store_errors": ("SlowDown", "InternalError"),
    "store_resets": ("reset", "reset_body"),
    "store_truncates": ("truncate", "truncate"),
    "store_trickles": ("trickle", "stall"),
}


class System:
    """Redis, object store, API, reaper and workers in a folder of their own; a context manager."""

    def __init__(self, folder: Path, base_model: Path, photos: Path) -> None:
        self.folder = folder
        self._base_model, self._photos = base_model, photos
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._frozen: dict[int, float] = {}  # process id: when it wakes, monotonic
        self._faults: list[tuple[Fault, float]] = []  # of the proxy: until when, monotonic
        self._away: dict[str, float] = {}  # server: when it comes back, monotonic
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
        self.settings = Settings(
            redis_url=self.redis.url,  # type: ignore[arg-type]
            s3_endpoint_url=self.proxy.url,
            s3_stall_s=2.0,
            readable=("s3://datasets/", "s3://models/"),
            writable=("s3://outputs/",),
            s3_access_key_id=self.s3.access_key_id,  # type: ignore[arg-type]
            s3_secret_access_key=self.s3.secret_access_key,  # type: ignore[arg-type]
            data_dir=self.folder / "worker",
            device="cpu",
            heartbeat_s=0.3,
            lease_s=LEASE_S,
            hang_s=8.0,
            grace_s=10.0,
            reap_every_s=0.3,
            retry_wait_s=0.1,
            max_failures=MAX_FAILURES,
        )
        self.store: Store = open_store(self.settings)
        self.storage = Storage(self.settings.model_copy(update={"s3_endpoint_url": self.s3.endpoint_url}))
        self._fill_bucket()
        self.port = free_port()
        with Redis.from_url(self.redis.url) as redis:
            self.clients = {o: Loraq(f"http://127.0.0.1:{self.port}", create_token(redis, o)) for o in OWNERS}
        self.keep_up()
        deadline = time.monotonic() + 30
        while not self._api_answers():
            assert time.monotonic() < deadline, "the API does not start"
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients.values():
            client.close()
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.proxy.__exit__()
        self.s3.stop()
        self.redis.stop()

    def keep_up(self) -> None:
        """Wake and begin again what is due."""
        now_s = time.monotonic()
        for name, at_s in list(self._away.items()):
            if now_s >= at_s:
                del self._away[name]
                (self.redis if name == "redis" else self.s3).start()
        self._faults = [(fault, at_s) for fault, at_s in self._faults if now_s < at_s]
        self.proxy.faults = [fault for fault, _ in self._faults]
        for pid, at_s in list(self._frozen.items()):
            if now_s >= at_s:
                del self._frozen[pid]
                _send(pid, signal.SIGCONT)
        commands = {"api": ["api", "--port", str(self.port)], "reaper": ["api.reaper"]}
        commands |= {f"worker-{n}": ["worker"] for n in range(WORKERS)}
        for name, command in commands.items():
            if name not in self._processes or self._processes[name].poll() is not None:
                self._start(name, command)

    @property
    def calm(self) -> bool:
        """Whether every fault is over."""
        return not self._frozen and not self._away and not self._faults

    def strike(self, kind: str, number: int, seconds: float) -> None:
        """One fault. A process that is not there at the moment cannot be struck: then nothing happens."""
        worker = self._processes[f"worker-{number}"].pid
        horse = _child(worker)
        trainer = _child(horse)
        match kind:
            case "kill_trainer":
                _send(trainer, signal.SIGKILL)
            case "kill_horse":
                _send(horse, signal.SIGKILL)
            case "kill_worker":
                _send(worker, signal.SIGKILL)
            case "kill_all_of_worker":
                for pid in (worker, horse, trainer):
                    _send(pid, signal.SIGKILL)
            case "term_worker":
                _send(worker, signal.SIGTERM)
            case "term_worker_twice":
                _send(worker, signal.SIGTERM)
                time.sleep(1.1)  # RQ takes two within a second for one
                _send(worker, signal.SIGTERM)
            case "term_horse":
                _send(horse, signal.SIGTERM)
            case "freeze_trainer":
                self._freeze(trainer, seconds)
            case "freeze_horse":
                self._freeze(horse, seconds)
            case "freeze_worker":
                self._freeze(worker, seconds)
            case "freeze_reaper":
                self._freeze(self._processes["reaper"].pid, seconds)
            case "kill_api" | "kill_reaper":
                _send(self._processes[kind.removeprefix("kill_")].pid, signal.SIGKILL)
            case "kill_redis" if "redis" not in self._away:
                self.redis.kill()
                self._away["redis"] = time.monotonic() + seconds
            case "kill_store" if "store" not in self._away:
                self.s3.kill()
                self._away["store"] = time.monotonic() + seconds
            case "store_errors" | "store_resets" | "store_truncates" | "store_trickles":
                fault = Fault(PROXY_FAULTS[kind][number], chance=PROXY_CHANCE, after_bytes=1000)
                self._faults.append((fault, time.monotonic() + seconds))
            case _:
                pass

    def spec(self, seed: int) -> dict[str, Any]:
        """One of a few specs: what comes out of each is known from an undisturbed run."""
        return {
            "version": 1,
            "name": f"seed-{seed}",
            "base_model": "s3://models/tiny.safetensors",
            "dataset": {"uri": "s3://datasets/photos/"},
            "training": {"resolution": 64, "steps": 60, "seed": seed},
            "checkpoints": {"every_n_steps": 10},
            "output": {"uri": "s3://outputs/chaos/"},
        }

    def trainers(self) -> list[int]:
        """Process ids of all trainers of this system, orphans included."""
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if str(self.folder).encode() in (entry / "cmdline").read_bytes().partition(b"worker.trainer")[2]:
                        found.append(int(entry.name))
        return found

    def _fill_bucket(self) -> None:
        self.storage.upload(self._base_model, S3Uri("models", "tiny.safetensors"))
        for picture in sorted(self._photos.glob("*.jpg"))[:PICTURES]:
            for file in (picture, picture.with_suffix(".txt")):
                self.storage.upload(file, S3Uri("datasets", f"photos/{file.name}"))

    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            env = worker_env(self.settings)
            self._processes[name] = subprocess.Popen([sys.executable, "-m", *command], env=env, stdout=log, stderr=log)

    def _freeze(self, pid: int | None, seconds: float) -> None:
        if pid is not None and _send(pid, signal.SIGSTOP):
            self._frozen[pid] = time.monotonic() + seconds

    def _api_answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            return False


def _child(pid: int | None) -> int | None:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def _send(pid: int | None, number: signal.Signals) -> bool:
    try:
        os.kill(pid or 0, number) if pid else None
    except ProcessLookupError:
        return False
    return pid is not None
