"""Redis is killed and stays away for 5, 45 and 120 s: no attempt ends, none is taken for lost, what was committed is
reported, and those who submit meanwhile get one job."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from api.schemas import Job, JobEvent
from jobs.manifest import MANIFEST_NAME
from jobs.record import JobRecord
from jobs.settings import Settings
from jobs.status import Status
from tests.chaos.oracle import weights_of
from tests.chaos.run import PHOTOS
from tests.chaos.system import System

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

PRODUCT = {name: Settings.model_fields[name].default for name in ("heartbeat_s", "lease_s", "reap_every_s", "hang_s")}
"""Its own times: the longest outage is more than two leases."""

STARTS_WITHIN_S = 120.0
ENDS_WITHIN_S = 120.0


@pytest.fixture(scope="module")
def system(tiny_paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("outages")
    with System(folder / "system", tiny_paths["single_file"], PHOTOS, workers=3, **PRODUCT) as system:
        yield system


def until(reached: Callable[[], object], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def train_and_freeze(system: System) -> tuple[Job, int]:
    """A job, and its trainer's process id: it has made a checkpoint, and stands still until it is woken."""
    job = system.clients["alice"].submit(system.spec(0))
    until(lambda: list(system.folder.glob(f"s3/outputs/chaos/{job.id}/attempts/1/checkpoints/*/*")), STARTS_WITHIN_S)
    (trainer,) = system.trainers(job.id)
    os.kill(trainer, signal.SIGSTOP)
    return job, trainer


def submit_by_cli(system: System, folder: Path) -> list[subprocess.Popen[str]]:
    """Two clients that submit with the same key."""
    (folder / "spec.yaml").write_text(yaml.safe_dump(system.spec(1)))
    environment = os.environ | {"LORAQ_API_URL": system.clients["bob"].url, "LORAQ_API_TOKEN": system.token_of("bob")}
    command = [sys.executable, "-m", "api.cli", "submit", str(folder / "spec.yaml"), "--idempotency-key", folder.name]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]


@pytest.mark.parametrize("outage_s", [5, 45, 120])
def test_an_outage_costs_no_attempt_and_no_submission(system: System, tmp_path: Path, outage_s: int) -> None:
    processes = system.pids
    # One job is in the midst of its training, and one ends its training while Redis is away. That they stand still
    # meanwhile only spares the machine: a trainer knows of no Redis.
    in_training, its_trainer = train_and_freeze(system)
    ending, other_trainer = train_and_freeze(system)
    followed: list[JobEvent] = []
    follower = threading.Thread(target=lambda: followed.extend(system.clients["alice"].events(in_training.id)))
    follower.start()
    # One has published its manifest, and has told nobody yet.
    committed = system.clients["alice"].submit(system.spec(0))
    with system.proxy.fault("late", method="PUT", path=f"{committed.id}/{MANIFEST_NAME}"):
        manifest = system.folder / "s3" / "outputs" / "chaos" / committed.id / MANIFEST_NAME
        until(manifest.exists, STARTS_WITHIN_S)
        system.redis.kill()
        gone_s = time.monotonic()
        content = manifest.read_bytes()

    os.kill(other_trainer, signal.SIGCONT)
    people = submit_by_cli(system, tmp_path)
    time.sleep(max(0.0, gone_s + outage_s - time.monotonic()))
    system.redis.start()
    os.kill(its_trainer, signal.SIGCONT)

    answers = [each.communicate(timeout=60) for each in people]
    assert [each.returncode for each in people] == [0, 0], answers
    (submitted,) = {out.strip() for out, _ in answers}
    assert all("Asking again" in err for _, err in answers), answers
    system.clients["bob"].cancel(submitted)
    assert [job.id for job in system.clients["bob"].list().jobs].count(submitted) == 1
    records = [ended(system, job.id) for job in (in_training, ending, committed)]
    assert [(record.status, len(record.attempts)) for record in records] == [(Status.SUCCEEDED, 1)] * 3
    assert manifest.read_bytes() == content
    first, *others = [weights_of(system, record) for record in records]
    assert all(other == first for other in others)
    follower.join(30)
    assert followed[-1].final_status is Status.SUCCEEDED
    assert len({event.id for event in followed}) == len(followed)
    assert system.pids == processes


def ended(system: System, job_id: str) -> JobRecord:
    until(lambda: system.store.get(job_id).status.final, ENDS_WITHIN_S)
    return system.store.get(job_id)
