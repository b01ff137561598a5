"""A training that is saved and gone on from ends where it would have ended, to the bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from worker.errors import TrainerError
from worker.loop.config import LossConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from worker.loop.state import load_state, prune, save_state
from worker.loop.train import TrainState, train
from worker.lora.config import Override

EVERYTHING = TrainConfig(
    steps=9,
    seed=3,
    gradient_accumulation=2,
    optimizer=OptimizerConfig(learning_rate=1e-2),
    lr_schedule=ScheduleConfig("cosine", warmup_steps=2),
    loss=LossConfig(kind="huber", min_snr_gamma=5.0, noise_offset=0.05, min_timestep=100),
    ema_decay=0.9,
)
IDENTITY = {"seed": 3, "betas": (0.9, 0.999)}


def run(setup, state: TrainState, until: int) -> list[float]:
    losses = []
    for result in train(*setup, EVERYTHING, state):
        losses.append(result.loss)
        if result.step == until:
            break
    return losses


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")
    return path


@pytest.fixture
def checkpoint(make_setup: Callable, tmp_path: Path, metrics: Path) -> Path:
    """A training after its first step."""
    setup = make_setup(seed=3)
    state = TrainState.begin(setup.lora, EVERYTHING)
    run(setup, state, until=1)
    return save_state(tmp_path, setup.lora, state, IDENTITY, metrics)


LORAS = {
    "qkv": {},
    "locon": {"targets": "locon", "overrides": (Override("*resnets*", rank=2),)},
    "rslora, both dropouts": {"rslora": True, "dropout": 0.3, "rank_dropout": 0.3},
    "dora": {"targets": "locon", "dora": True, "rank_dropout": 0.2},
}


@pytest.mark.parametrize("kind", LORAS)
def test_resumed_twice_equals_uninterrupted_to_the_bit(
    make_setup: Callable, tmp_path: Path, metrics: Path, kind: str
) -> None:
    whole = make_setup(seed=3, caption_dropout=0.3, **LORAS[kind])
    whole_state = TrainState.begin(whole.lora, EVERYTHING)
    whole_losses = run(whole, whole_state, until=9)

    losses: list[float] = []
    folder: Path | None = None
    for until in (4, 5, 9):  # each time with all objects made anew
        part = make_setup(seed=3, caption_dropout=0.3, **LORAS[kind])
        state = TrainState.begin(part.lora, EVERYTHING)
        if folder:
            load_state(folder, part.lora, state, IDENTITY)
        losses += run(part, state, until)
        folder = save_state(tmp_path, part.lora, state, IDENTITY, metrics)
        assert folder.name == f"step-{until:06d}"

    assert losses == whole_losses
    assert state.step == whole_state.step == 9
    weights = whole.lora.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in part.lora.state_dict().items())
    assert state.ema
    assert whole_state.ema
    averages = whole_state.ema.weights
    assert all(torch.equal(weight, averages[name]) for name, weight in state.ema.weights.items())


def test_a_checkpoint_lists_its_files(checkpoint: Path) -> None:
    index = json.loads((checkpoint / "state.json").read_text())
    assert index["step"] == 1
    assert set(index["files"]) == {path.name for path in checkpoint.iterdir()} - {"state.json"}
    assert set(index["files"]) == {"lora.safetensors", "ema.safetensors", "optimizer.safetensors", "metrics.jsonl"}


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "no index", "no folder"])
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(
    checkpoint: Path, make_setup: Callable, damage: str
) -> None:
    file = checkpoint / "optimizer.safetensors"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "flip":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "remove":
        file.unlink()
    elif damage == "no index":
        (checkpoint / "state.json").unlink()
    else:
        shutil.rmtree(checkpoint)
    setup = make_setup(seed=3)
    before = {name: weight.clone() for name, weight in setup.lora.state_dict().items()}
    state = TrainState.begin(setup.lora, EVERYTHING)
    with pytest.raises(TrainerError, match="go on from an older one"):
        load_state(checkpoint, setup.lora, state, IDENTITY)
    assert state.step == 0
    assert all(torch.equal(weight, before[name]) for name, weight in setup.lora.state_dict().items())


def test_a_checkpoint_of_another_training_is_refused_by_what_differs(checkpoint: Path, make_setup: Callable) -> None:
    setup = make_setup(seed=3)
    state = TrainState.begin(setup.lora, EVERYTHING)
    with pytest.raises(
        TrainerError, match=r"another training: betas was .*0\.999.* and is .*0\.99\]; seed was 3 and is 4"
    ):
        load_state(checkpoint, setup.lora, state, {"seed": 4, "betas": (0.9, 0.99)})
    assert state.step == 0


def test_the_same_step_may_be_saved_again(checkpoint: Path, make_setup: Callable, metrics: Path) -> None:
    setup = make_setup(seed=3)
    state = TrainState.begin(setup.lora, EVERYTHING)
    load_state(checkpoint, setup.lora, state, IDENTITY)
    assert save_state(checkpoint.parent, setup.lora, state, IDENTITY, metrics) == checkpoint
    load_state(checkpoint, setup.lora, state, IDENTITY)


def test_a_save_that_fails_leaves_no_checkpoint(
    make_setup: Callable, tmp_path: Path, metrics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = make_setup()
    monkeypatch.setattr("worker.loop.state.shutil.copyfile", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_state(tmp_path, setup.lora, TrainState.begin(setup.lora, EVERYTHING), IDENTITY, metrics)
    assert list(tmp_path.glob("step-*")) == []
    assert len(list(tmp_path.glob(".step-*.tmp"))) == 1
    prune(tmp_path, keep=1)
    assert list(tmp_path.glob(".step-*.tmp")) == []


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 900, 1000, 20):
        (tmp_path / f"step-{step:06d}").mkdir()
    prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000900", "step-001000"]
