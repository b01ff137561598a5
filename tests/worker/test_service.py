"""The worker's parent process: light, and on one queue."""

import subprocess
import sys

import pytest
from rq import Worker

from worker.service import AttemptWorker, open_worker


def test_parent_and_horse_import_no_torch():
    program = "import sys, worker.__main__, worker.service, worker.attempt; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.integration
def test_one_queue_a_worker(store):
    assert open_worker(store).queues == [store.queue]


@pytest.mark.parametrize(
    "name",
    ["handle_warm_shutdown_request", "setup_work_horse_signals", "maintain_heartbeats", "handle_work_horse_killed"],
)
def test_what_is_overridden_is_there_in_rq(name):
    """RQ is pinned, and these are its insides: a new version that renames one must not pass unseen."""
    assert callable(getattr(Worker, name))
    assert name in vars(AttemptWorker)
