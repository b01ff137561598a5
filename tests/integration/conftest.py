"""A worker on real servers, with the tiny base model in the bucket."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.record import JobRecord
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.storage import Storage
from jobs.store import Store
from jobs.uri import S3Uri


@pytest.fixture
def bucket(storage: Storage, tiny_paths: dict[str, Path], photos: Path) -> Callable[..., str]:
    """Fills the bucket: the base model, and a dataset of the first `count` photographs. Returns the dataset's URI."""

    def fill(name: str, count: int = 8, without: tuple[str, ...] = (), broken: str | None = None) -> str:
        storage.upload(tiny_paths["single_file"], S3Uri("models", "tiny.safetensors"))
        folder = S3Uri("datasets", f"{name}/")
        for picture in sorted(photos.glob("*.jpg"))[:count]:
            data = picture.read_bytes()
            storage.write(folder / picture.name, data[: len(data) // 2] if picture.name == broken else data)
            if picture.with_suffix(".txt").name not in without:
                storage.write(folder / f"{picture.stem}.txt", picture.with_suffix(".txt").read_bytes())
        return str(folder)

    return fill


@pytest.fixture
def submit(store: Store) -> Callable[[JobSpec], JobRecord]:
    """Submits a spec for the owner `me`."""
    return lambda spec: store.submit(JobRecord.create("me", spec))


def worker_env(settings: Settings) -> dict[str, str]:
    """The environment in which `python -m worker` reads these settings."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LORAQ_")}
    for name, value in settings:
        if value is None or name == "allowed_folders":
            continue
        text = ",".join(value) if isinstance(value, tuple) else value
        env[f"LORAQ_{name.upper()}"] = text.get_secret_value() if hasattr(text, "get_secret_value") else str(text)
    return env


@pytest.fixture
def worker(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts `python -m worker`, with other settings if given; every one is ended with the test."""
    started: list[subprocess.Popen] = []

    def start(**overrides: object) -> subprocess.Popen:
        env = worker_env(settings.model_copy(update=overrides))
        with (tmp_path / f"worker-{len(started)}.log").open("ab") as log:
            started.append(subprocess.Popen([sys.executable, "-m", "worker"], env=env, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def reaper(settings: Settings) -> Iterator[subprocess.Popen]:
    """`python -m api.reaper`, ended with the test."""
    process = subprocess.Popen([sys.executable, "-m", "api.reaper"], env=worker_env(settings))
    yield process
    process.terminate()
    process.wait(60)
