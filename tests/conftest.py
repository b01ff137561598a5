"""Fixtures that all tests share: real servers once a session, and factories for settings and specs."""

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from api.servers import RedisServer, S3Server
from jobs.queue import Queues
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.spec_text import parse_spec
from jobs.storage import Storage
from jobs.store import Store

REPOSITORY = Path(__file__).parent.parent
BUCKETS = ("datasets", "models", "outputs")


def pytest_configure() -> None:
    """Let children take Ctrl-C: tests that a shell runs in the background inherit that it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A LORAQ_* variable of the person who runs the tests must not change them."""
    for name in [name for name in os.environ if name.startswith("LORAQ_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis-protocol server. A test that kills it starts it again."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with the buckets datasets, models and outputs. Tests share them: use folders of your own."""
    folder = tmp_path_factory.mktemp("s3")
    for bucket in BUCKETS:
        (folder / bucket).mkdir()
    with S3Server(folder, "test-key", secrets.token_urlsafe(24)) as server:
        yield server


@pytest.fixture
def make_settings(redis_server: RedisServer, s3_server: S3Server, tmp_path: Path) -> Callable[..., Settings]:
    """Settings for the real servers; Redis is empty, and the queue has a name of its own."""
    with Redis.from_url(redis_server.url) as redis:
        redis.flushall()

    def make(**overrides: Any) -> Settings:
        values: dict[str, Any] = {
            "redis_url": redis_server.url,
            "queue": f"test-{secrets.token_hex(4)}",
            **_s3_settings(s3_server),
            "readable": tuple(f"s3://{bucket}/" for bucket in BUCKETS),
            "writable": ("s3://outputs/",),
            "data_dir": tmp_path / "worker",
            "device": "cpu",
            "cpu_threads": 1,
            "grace_s": 5.0,
            "heartbeat_s": 0.2,
        }
        return Settings(**values | overrides)

    return make


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """The settings that `store` is made from, and that name the servers of `storage`."""
    return make_settings()


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    """All jobs, in the real Redis: none yet."""
    with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
        yield Store(redis, Queues(settings.queue, redis))


@pytest.fixture(scope="session")
def storage(s3_server: S3Server) -> Storage:
    """The real object store; one for all tests, because boto3 takes its time to make a client."""
    return Storage(Settings.model_validate(_s3_settings(s3_server)))


@pytest.fixture
def make_spec() -> Callable[..., JobSpec]:
    """A small spec that is in order; changes go into it section by section: `make_spec(training={"steps": 3})`."""

    def make(**changes: Any) -> JobSpec:
        unique = secrets.token_hex(4)
        data: dict[str, Any] = {
            "version": 1,
            "name": "ginger-cat",
            "base_model": "s3://models/tiny.safetensors",
            "dataset": {"uri": f"s3://datasets/{unique}/"},
            "training": {"resolution": 64, "steps": 4},
            "output": {"uri": f"s3://outputs/{unique}/"},
        }
        for name, change in changes.items():
            old = data.get(name)
            data[name] = old | change if isinstance(old, dict) and isinstance(change, dict) else change
        return parse_spec(data)

    return make


@pytest.fixture(scope="session")
def photos() -> Path:
    """Eight real photographs with captions."""
    return REPOSITORY / "jobs" / "examples" / "photos"


def _s3_settings(server: S3Server) -> dict[str, str]:
    return {
        "s3_endpoint_url": server.endpoint_url,
        "s3_access_key_id": server.access_key_id,
        "s3_secret_access_key": server.secret_access_key,
    }


@pytest.fixture(scope="session")
def tiny_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny base model's path in each layout: single_file, diffusers. Read only."""
    from worker.model.tiny import write_tiny_base  # here, so that tests without a model import no torch

    return write_tiny_base(tmp_path_factory.mktemp("tiny"))
