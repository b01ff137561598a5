"""A few schedules of chaos, and proof that the schedule is the seed's and that the oracle sees what is broken."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.manifest import MANIFEST_NAME
from jobs.record import Attempt, JobRecord, now
from jobs.spec_text import parse_spec
from jobs.status import Status
from jobs.uri import S3Uri
from tests.chaos.oracle import Acknowledged, violations
from tests.chaos.run import Chaos
from tests.chaos.schedule import FAULTS, draw
from tests.chaos.system import System

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

SEED = 20261124
SCHEDULES = 6


@pytest.fixture(scope="module")
def system(tiny_paths: dict[str, Path], photos: Path) -> Iterator[System]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        with System(Path(name) / "system", tiny_paths["single_file"], photos) as system:
            yield system
            folder = system
        assert folder.trainers() == []


def test_the_same_seed_gives_the_same_schedule():
    ours = [draw(7, number, 2, 3.0) for number in range(50)]

    assert ours == [draw(7, number, 2, 3.0) for number in range(50)]
    assert len(set(ours)) == 50
    assert {action.kind for action in itertools.chain(*ours)} == {*FAULTS, "submit", "cancel"}


def test_schedules_break_nothing(system):
    chaos = Chaos(system, SEED)
    chaos.learn_reference()

    assert {number: broken for number in range(SCHEDULES) if (broken := chaos.play(number))} == {}
    assert chaos.outcomes[Status.SUCCEEDED] > 0


def test_the_oracle_sees_a_lost_job_a_false_manifest_and_other_weights(system):
    job = system.clients["alice"].submit(system.spec(0))
    told = Acknowledged(submitted={job.id: 0, "20260101-000000000-0000000000": 0})
    Chaos(system, 0)._wait_for_all(Acknowledged(submitted={job.id: 0}))
    record = system.store.get(job.id)
    folder = S3Uri.parse(record.output_uri)

    lost = list(violations(system, told, {}))
    assert [sentence.partition(" ")[0] for sentence in lost] == ["20260101-000000000-0000000000"]
    del told.submitted["20260101-000000000-0000000000"]
    assert list(violations(system, told, {})) == []
    assert "weights differ" in next(violations(system, told, {0: {}}))
    system.storage.write(folder / "attempts/1/loss.png", b"another")
    assert "loss.png is not what the manifest says" in next(violations(system, told, {}))
    system.storage.delete([folder / MANIFEST_NAME])
    assert "no manifest" in next(violations(system, told, {}))


def test_the_oracle_sees_a_job_that_failed_too_early(system):
    record = JobRecord.create("alice", parse_spec(system.spec(0)))
    attempt = Attempt(number=2, worker="w", started_at=now(), outcome="failed")
    failed = record.model_copy(update={"status": Status.FAILED, "attempts": (attempt,)})
    system.store.redis.set(f"loraq:job:{record.id}", failed.model_dump_json())

    said = " ".join(violations(system, Acknowledged(submitted={record.id: 0}), {}))

    assert "budget left" in said
    assert "has attempts [2]" in said
