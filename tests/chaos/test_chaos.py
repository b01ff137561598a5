"""Fifty schedules of chaos, and proof that a schedule is its seed's."""

import itertools
import subprocess
import sys

import pytest

from tests.chaos.run import Run
from tests.chaos.schedule import FAULTS, REQUESTS, draw

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

SEED = 20261126
SCHEDULES = 50


def test_the_same_seed_gives_the_same_schedule():
    ours = [draw(7, number, 2, 3.0) for number in range(60)]

    assert ours == [draw(7, number, 2, 3.0) for number in range(60)]
    assert len(set(ours)) == 60
    assert {action.kind for action in itertools.chain(*ours)} == {*FAULTS, *REQUESTS}


def test_another_process_draws_the_same_schedule():
    """Nothing of it hangs on a hash that Python salts, or on what was drawn before."""
    program = "from tests.chaos.schedule import draw; print(draw(7, 3, 2, 3.0))"

    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert told.stdout.strip() == repr(draw(7, 3, 2, 3.0))


def test_fifty_schedules_break_nothing(tiny_paths):
    report = Run(SEED, range(SCHEDULES), tiny_paths["single_file"]).play()

    assert report.broken == {}, "\n".join(report.lines())
    assert report.outcomes["succeeded"] > SCHEDULES / 2
    assert report.outcomes["cancelled"] > 0
    assert report.outcomes["attempts that went on from a checkpoint"] > 0
    assert report.strikes.keys() == {*FAULTS, *REQUESTS}
    assert report.looks > SCHEDULES
