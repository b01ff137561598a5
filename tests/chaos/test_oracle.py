"""The oracle sees each promise that is broken: one is broken on purpose in each test."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import FailureReason
from jobs.manifest import MANIFEST_NAME, Manifest, own_manifest
from jobs.record import Attempt, Failure, JobRecord, now
from jobs.spec_text import parse_spec
from jobs.status import Status
from jobs.uri import S3Uri
from tests.chaos.oracle import Acknowledged, Cancel, violations, violations_in_the_end
from tests.chaos.play import CANCEL_WITHIN_S, Chaos
from tests.chaos.run import running_system
from tests.chaos.system import MAX_FAILURES, MAX_PREEMPTIONS, System
from tests.chaos.watch import Watch

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

CRASHED = FailureReason.CRASHED
LOST = "20260101-000000000-0000000000"


@pytest.fixture(scope="module")
def system(tiny_paths: dict[str, Path]) -> Iterator[System]:
    with running_system(tiny_paths["single_file"]) as system:
        yield system


@pytest.fixture(scope="module")
def job(system: System) -> JobRecord:
    """A job that succeeded."""
    with Chaos(system, seed=0) as chaos:
        return chaos.undisturbed(0)


@pytest.fixture
def watch(system: System) -> Watch:
    """It looks when it is told to."""
    return Watch([], system.folder / "s3" / "outputs" / "chaos")


@pytest.fixture
def said(system: System, watch: Watch) -> Callable[..., str]:
    """What the oracle says of a job, in one string; "" if all is well."""

    def say(job_id: str, reference: dict[int, Any] | None = None, cancel: Cancel | None = None) -> str:
        told = Acknowledged(submitted={job_id: 0}, cancelled={job_id: cancel} if cancel else {})
        return "; ".join(violations(system, told, watch, reference or {}))

    return say


@pytest.fixture
def forged(system: System) -> Iterator[Callable[..., JobRecord]]:
    """Writes a record that no attempt would write."""
    keys: list[str] = []

    def forge(*outcomes: str | FailureReason, **changes: Any) -> JobRecord:
        record = JobRecord.create("alice", parse_spec(system.spec(0)))
        attempts: list[Attempt] = []
        for number, outcome in enumerate(outcomes, 1):
            attempt = Attempt(number=number, worker="w", started_at=now(), outcome=str(outcome))
            if isinstance(outcome, FailureReason):
                failure = Failure(reason=outcome, message="Forged.")
                attempt = attempt.model_copy(update={"outcome": "failed", "failure": failure})
            attempts.append(attempt)
        forgery = record.model_copy(update={"attempts": tuple(attempts)} | changes)
        keys.append(f"loraq:job:{record.id}")
        system.store.redis.set(keys[-1], forgery.model_dump_json())
        return forgery

    yield forge
    system.store.redis.delete(*keys)


def test_a_job_that_is_well(said, job):
    assert job.status is Status.SUCCEEDED
    assert said(job.id) == ""


def test_a_lost_job(said):
    assert said(LOST) == f"{LOST} was acknowledged and is lost"


def test_other_weights(said, job):
    assert "weights differ" in said(job.id, reference={0: {}})


def test_a_file_that_is_not_what_the_manifest_says_and_one_that_is_gone(system, said, job):
    place = S3Uri.parse(job.output_uri) / "attempts/1/loss.png"
    content = system.storage.read(place)

    system.storage.write(place, b"another")
    assert "loss.png is not what the manifest says" in said(job.id)
    system.storage.delete([place])
    assert "loss.png is in the manifest and not in the bucket" in said(job.id)
    system.storage.write(place, content)
    assert said(job.id) == ""


def test_a_manifest_that_changes_or_goes(system, said, watch, job):
    place, own = (S3Uri.parse(job.output_uri) / name for name in (MANIFEST_NAME, own_manifest(1)))
    content = system.storage.read(place)
    watch.look_at_commits()
    assert watch.commits[job.id].manifest.attempt == 1
    second = Manifest.model_validate_json(content).model_copy(update={"attempt": 2})

    system.storage.write(place, second.model_dump_json().encode())
    watch.look_at_commits()
    assert watch.broken == [f"{job.id} was committed twice, by attempt 1 and then attempt 2"]
    assert "another manifest than the committed one is published" in said(job.id)
    system.storage.delete([place, own])
    watch.look_at_commits()
    assert "has none any more" in watch.broken[1]
    assert "succeeded and has no manifest" in said(job.id)
    for uri in (place, own):
        system.storage.write(uri, content)


def test_a_manifest_where_nothing_was_committed(system, said, forged):
    cancelled = forged("cancelled", status=Status.CANCELLED, cancel_requested_at=now())
    system.storage.write(S3Uri.parse(cancelled.output_uri) / MANIFEST_NAME, b"{}")

    assert "is cancelled, has committed nothing, and has a manifest" in said(cancelled.id)


def test_a_final_status_that_changes(said, watch, job):
    watch.saw(job.id, Status.FAILED)

    assert f"{job.id} was failed, which is final, and is succeeded" in "; ".join([said(job.id), *watch.broken])


def test_statuses_are_seen_through_the_api(system, watch, job):
    watch._clients = [system.client_of("alice")]
    watch.look_at_statuses()

    assert watch.statuses[job.id] is Status.SUCCEEDED
    watch._clients[0].close()


@pytest.mark.parametrize(
    ("outcomes", "changes", "words"),
    [
        ([CRASHED], {"status": Status.FAILED}, "failed with budget left"),
        ([CRASHED] * (MAX_FAILURES + 1), {"status": Status.FAILED}, "tried again after 7 failures"),
        (["preempted"] * (MAX_PREEMPTIONS + 1), {"status": Status.FAILED}, "after 21 preemptions"),
        ([FailureReason.DATASET_INVALID] * MAX_FAILURES, {"status": Status.FAILED}, "for what cannot be"),
        (["cancelled"], {"status": Status.CANCELLED}, "nobody asked for it"),
        (["succeeded"], {"status": Status.SUCCEEDED}, "succeeded and has no manifest"),
        ([], {"status": Status.QUEUED}, "has not ended: queued"),
        ([CRASHED], {"status": Status.FAILED}, "but its events say []"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_record_that_cannot_be(said, forged, outcomes, changes, words):
    assert words in said(forged(*outcomes, **changes).id)


def test_attempts_that_are_missing_or_open(said, forged):
    attempt = Attempt(number=2, worker="w", started_at=now())

    broken = said(forged(status=Status.FAILED, attempts=(attempt,)).id)

    assert "has attempts [2]" in broken
    assert "attempts [2] have not" in broken


def test_a_cancel_that_is_not_obeyed(said, forged, job):
    earlier = job.created_at - timedelta(seconds=1)

    assert "acknowledged as cancelled and is succeeded" in said(job.id, cancel=Cancel(Status.CANCELLED, now()))
    assert "its cancel acknowledged" in said(job.id, cancel=Cancel(Status.TRAINING, earlier))
    assert said(job.id, cancel=Cancel(Status.UPLOADING, now())) == ""  # it came too late
    failed = forged(CRASHED, status=Status.FAILED)
    assert "was to be cancelled, and failed" in said(failed.id, cancel=Cancel(Status.TRAINING, now()))


def test_a_job_that_has_ended_and_is_held(system, said, job):
    system.store.redis.zadd("loraq:running", {job.id: 1.0})

    assert "have ended and are still held" in said(job.id)
    system.store.redis.zrem("loraq:running", job.id)


@pytest.fixture
def stray(system: System, job: JobRecord) -> Iterator[subprocess.Popen]:
    """A process that looks like a trainer of `job`."""
    program = [sys.executable, "-c", "import time; time.sleep(600)", "-m", "worker.trainer"]
    process = subprocess.Popen([*program, f"{system.settings.data_dir}/scratch/{job.id}-1-x/config.json"])
    yield process
    process.kill()
    process.wait()


def test_a_trainer_that_outlives_its_cancel(system, job, stray):
    with Chaos(system, seed=0) as chaos:
        told = Acknowledged(submitted={job.id: 0}, cancelled={job.id: Cancel(Status.TRAINING, now())})
        chaos._check_cancels(told)
        assert told.broken == []
        system.calm_s += CANCEL_WITHIN_S + 1
        chaos._check_cancels(told)

    assert told.broken == [f"{job.id} was cancelled, and [{stray.pid}] train on after {CANCEL_WITHIN_S} s"]


def test_what_is_left_over_in_the_end(system, watch, job, forged, stray):
    hidden = forged("succeeded", status=Status.SUCCEEDED)
    told = Acknowledged(submitted={job.id: 0, hidden.id: 0})
    unasked = system.clients["alice"].submit(system.spec(0))
    system.clients["alice"].cancel(unasked.id)
    (system.settings.data_dir / "scratch" / "left").mkdir()
    system.storage._client.create_multipart_upload(Bucket="outputs", Key="chaos/left")

    said = "; ".join(violations_in_the_end(system, told, watch))

    published = f"{hidden.id} succeeded, and nobody has published its manifest"
    for words in (unasked.id, published, "['left']", "1 multipart uploads", f"{stray.pid} "):
        assert words in said
    (system.settings.data_dir / "scratch" / "left").rmdir()
