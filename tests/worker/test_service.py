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
def test_one_queue_a_worker(store, settings):
    assert open_worker(store, settings).queues == [store.queue]


@pytest.mark.parametrize(
    "name",
    [
        "handle_warm_shutdown_request",
        "set_shutdown_requested_date",
        "request_force_stop",
        "setup_work_horse_signals",
        "heartbeat",
        "maintain_heartbeats",
        "monitor_work_horse",
        "handle_work_horse_killed",
        "register_death",
    ],
)
def test_what_is_overridden_is_there_in_rq(name):
    """RQ is pinned, and these are its insides: a new version that renames one must not pass unseen."""
    assert callable(getattr(Worker, name))
    assert name in vars(AttemptWorker)
