"""A process that holds on to its parent does not outlive it."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")

CHILD = """
import sys, time
from worker.lifeline import die_with_parent
die_with_parent(int(sys.argv[1]) if len(sys.argv) > 1 else None)
print("holding on", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(child.stdout.readline().strip(), child.pid, flush=True)
time.sleep(60)
"""


def test_the_child_of_a_killed_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert parent.stdout
    with parent, parent.stdout:
        *words, child = parent.stdout.readline().split()
        assert words == ["holding", "on"]
        watch = os.pidfd_open(int(child))
        try:
            parent.kill()
            ended, _, _ = select.select([watch], [], [], 10)  # a pidfd is readable when its process has ended
            assert ended
        finally:
            os.close(watch)


def test_an_orphan_ends_at_once() -> None:
    not_its_parent = str(os.getppid())
    result = subprocess.run(
        [sys.executable, "-c", CHILD, not_its_parent], capture_output=True, text=True, timeout=30, cwd=REPOSITORY
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert f"The parent process {not_its_parent} has ended" in result.stderr
