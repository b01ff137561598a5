"""The trainer's process: what it is given, and why it ended."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.errors import FailureReason
from worker import process
from worker.process import TrainerFailed, TrainerProcess


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a program in the trainer's place; gives its facts, or raises why it ended."""
    popen = subprocess.Popen

    def start(program: str) -> list[dict]:
        monkeypatch.setattr(process.subprocess, "Popen", lambda _, **how: popen([sys.executable, "-c", program], **how))
        with TrainerProcess(tmp_path / "config.json", tmp_path / "train.log", cpu_threads=3) as trainer:
            return [fact for fact in trainer.facts(every_s=5) if fact is not None]

    return start


def test_facts_come_in_order_and_stray_output_becomes_a_warning(run):
    facts = run("""print('{"fact": "phase"}'); print("stray"); print("[1]"); print('{"fact": "finished"}')""")

    assert [fact["fact"] for fact in facts] == ["phase", "warning", "warning", "finished"]


def test_it_gets_no_secret(run, monkeypatch):
    for name in ("LORAQ_S3_SECRET_ACCESS_KEY", "LORAQ_REDIS_URL", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "top-secret")

    facts = run('import json, os; print(json.dumps({"fact": "finished", "env": dict(os.environ)}))')

    assert "top-secret" not in facts[0]["env"].values()
    assert facts[0]["env"]["OMP_NUM_THREADS"] == "3"


def test_a_failure_keeps_the_trainer_s_reason(run):
    with pytest.raises(TrainerFailed, match="lower it") as failed:
        run("""print('{"fact": "failed", "reason": "out_of_memory_gpu", "message": "lower it"}')""")
    assert failed.value.reason is FailureReason.OUT_OF_MEMORY_GPU


def test_a_failure_stays_one_when_another_rank_still_says_what_it_does(run):
    with pytest.raises(TrainerFailed, match="lower it") as failed:
        run("""print('{"fact": "failed", "reason": "out_of_memory_gpu", "message": "lower it"}\\n{"fact": "phase"}')""")
    assert failed.value.reason is FailureReason.OUT_OF_MEMORY_GPU


def test_an_end_without_result_is_explained_by_its_last_words(run):
    with pytest.raises(TrainerFailed, match=r"code 3.*last words"):
        run('import sys; print("last words", file=sys.stderr); sys.exit(3)')


@pytest.mark.parametrize(("kills", "reason"), [(0, FailureReason.CRASHED), (1, FailureReason.OUT_OF_MEMORY_HOST)])
def test_a_kill_by_the_kernel_for_want_of_memory_is_told_from_another(run, monkeypatch, tmp_path, kills, reason):
    counts = tmp_path / "memory.events"
    counts.write_text("oom 0\noom_kill 0\n")
    monkeypatch.setattr(process, "_CGROUP_EVENTS", counts)
    program = f"""
import os, pathlib
pathlib.Path({str(counts)!r}).write_text("oom 0\\noom_kill {kills}\\n")
os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    with pytest.raises(TrainerFailed) as failed:
        run(program)
    assert failed.value.reason is reason
