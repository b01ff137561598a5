"""What happens to one rank happens to all: they stop after the same step, fail for one reason, and none lives on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.loop.several import INTERFERE, REPOSITORY, assert_gone, children, kill, launched
from worker.loop.config import TrainerConfig

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl and /proc are Linux's")
MakeConfig = Callable[..., TrainerConfig]

ENDLESS = 100_000


def test_a_killed_rank_ends_all_and_is_told_by_its_signal(make_config: MakeConfig, tmp_path: Path) -> None:
    with launched(make_config(ENDLESS), tmp_path) as several:
        several.until("step", step=1)
        ranks = several.ranks()
        kill(ranks[1])
        assert several.finish() == -signal.SIGKILL
    assert_gone(*ranks)
    assert {fact["fact"] for fact in several.facts}.isdisjoint({"failed", "stopped", "finished"})


def test_nothing_outlives_the_process_that_started_torchrun(make_config: MakeConfig, tmp_path: Path) -> None:
    with launched(make_config(ENDLESS), tmp_path):  # for its configuration alone
        pass
    program = (
        "import os, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'worker.launch', sys.argv[1], '--gpus=2', '--parent', str(os.getpid())])"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "config-0.json")],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with parent:
        assert parent.stdout
        for line in parent.stdout:
            if json.loads(line).get("step") == 1:
                break
        (torchrun,) = children(parent.pid)
        ranks = children(torchrun)
        assert len(ranks) == 2
        parent.kill()
        assert_gone(torchrun, *ranks)


@pytest.mark.parametrize("whom", ["torchrun", "one rank"])
def test_a_stop_of_one_is_a_stop_of_all_after_the_same_step(make_config: MakeConfig, tmp_path: Path, whom: str) -> None:
    with launched(make_config(ENDLESS), tmp_path) as several:
        several.until("step", step=2)
        ranks = several.ranks()
        several.process.terminate() if whom == "torchrun" else os.kill(ranks[1], signal.SIGTERM)
        code = several.finish()
    assert code == 0, several.log.read_text()
    stopped = several.facts[-1]
    assert (stopped["fact"], stopped["path"]) == ("stopped", f"checkpoints/step-{stopped['step']:06d}")
    assert "Traceback" not in several.log.read_text()
    assert_gone(*ranks)


def test_a_stop_while_encoding_leaves_nothing_to_keep(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(ENDLESS, cache=str(tmp_path / "cache"))
    with launched(config, tmp_path) as several:
        several.until("phase", name="encoding")
        ranks = several.ranks()
        os.kill(ranks[1], signal.SIGTERM)
        assert several.finish() == 0, several.log.read_text()
    assert several.facts[-1] == {"fact": "stopped", "step": None, "path": None}
    assert_gone(*ranks)


def test_a_number_that_is_not_finite_on_one_rank_fails_all_for_that_reason(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    spoil = "from worker.loop import train; whole = train.diffusion_loss; "
    spoil += "train.diffusion_loss = lambda *given: whole(*given) * float('nan')"
    with launched(make_config(ENDLESS), tmp_path, program=INTERFERE.format(interference=spoil)) as several:
        assert several.finish() == 1
    failed = [fact for fact in several.facts if fact["fact"] == "failed"]
    assert [(fact["reason"], fact["message"][:27]) for fact in failed] == [("nan_loss", "The loss is nan in step 1: ")]
    assert several.log.read_text().count("worker.errors.NanLoss: The loss is nan in step 1") == 2


def test_a_rank_that_fails_alone_says_why(make_config: MakeConfig, tmp_path: Path) -> None:
    program = INTERFERE.format(interference='raise MemoryError("no room")')
    with launched(make_config(ENDLESS), tmp_path, program=program) as several:
        assert several.finish() == 1
    assert [fact["reason"] for fact in several.facts if fact["fact"] == "failed"] == ["out_of_memory_host"]


def test_a_rank_with_other_weights_is_found_before_the_first_step(make_config: MakeConfig, tmp_path: Path) -> None:
    program = INTERFERE.format(interference="lora.state_dict()[next(iter(lora.state_dict()))].flatten()[0] += 1e-6")
    with launched(make_config(ENDLESS), tmp_path, program=program) as several:
        assert several.finish() == 1
    failed = [fact for fact in several.facts if fact["fact"] == "failed"]
    assert [fact["message"][:50] for fact in failed] == ["The weights of rank [1] are not those of rank 0: u"]
    assert not [fact for fact in several.facts if fact["fact"] == "step"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_gpus_are_told_in_one_fact(make_config: MakeConfig, tmp_path: Path) -> None:
    with launched(make_config(1, device="cuda"), tmp_path) as several:
        assert several.finish() == 1
    (failed,) = several.facts
    assert (failed["fact"], failed["reason"]) == ("failed", "gpu_missing")
