"""`python -m worker --once`: one job at most, for those who start a worker for each job that waits."""

import subprocess
import sys

import pytest

from jobs.errors import FailureReason
from jobs.status import Status
from tests.integration.conftest import worker_env

pytestmark = pytest.mark.integration


def work_once(settings) -> int:
    return subprocess.run(
        [sys.executable, "-m", "worker", "--once"], env=worker_env(settings), timeout=120, check=False
    ).returncode


def test_it_takes_one_job_of_two_and_ends(store, settings, submit, make_spec):
    first, second = submit(make_spec()), submit(make_spec())  # their dataset is not there

    assert work_once(settings) == 0

    assert store.get(first.id).failure.reason is FailureReason.DATASET_INVALID
    assert store.get(second.id).status is Status.QUEUED


def test_it_ends_when_no_job_waits(settings):
    assert work_once(settings) == 0
