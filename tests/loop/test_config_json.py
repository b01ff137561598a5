"""CONFIG.json says everything that the trainer is told, and a mistake in it is told by its field."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from worker.data.config import DatasetConfig
from worker.loop.config import (
    CheckpointsConfig,
    LossConfig,
    OptimizerConfig,
    SamplesConfig,
    ScheduleConfig,
    TrainConfig,
    TrainerConfig,
)
from worker.loop.config_json import read_config, write_config
from worker.lora.config import LoRAConfig, Override, TextLoRAConfig

EVERY_FIELD_CHANGED = TrainerConfig(
    base_model="base",
    output="out",
    cache="cache",
    dataset=DatasetConfig("photos", "ohwx", "filename", 0.1),
    train=TrainConfig(
        7,
        1,
        2,
        OptimizerConfig("adamw", 1e-3, 0.1, (0.8, 0.9), 1e-6),
        ScheduleConfig("cosine", 3),
        None,
        LossConfig(min_snr_gamma=5.0),
        0.99,
    ),
    lora=LoRAConfig(
        8,
        4.0,
        "transformer",
        ("conv_in",),
        (Override("*", 2, 1.0),),
        0.1,
        0.2,
        True,
        True,
        TextLoRAConfig("attention", 2),
    ),
    resolution=512,
    batch_size=3,
    checkpointing="none",
    device="cuda",
    dtype="float32",
    samples=SamplesConfig(("ein Kätzchen",), 5, 10, 7.5),
    checkpoints=CheckpointsConfig(4, 1),
    resume_from="old",
    formats=("kohya",),
)


def test_a_config_reads_back_as_it_was_written(tmp_path: Path, make_config: Callable[..., TrainerConfig]) -> None:
    for config in (EVERY_FIELD_CHANGED, make_config()):
        write_config(config, tmp_path / "config.json")
        assert read_config(tmp_path / "config.json") == config


def test_whole_numbers_are_fine_for_fractions(tmp_path: Path) -> None:
    write_config(EVERY_FIELD_CHANGED, tmp_path / "config.json")
    content = json.loads((tmp_path / "config.json").read_text())
    content["lora"]["alpha"] = 4
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_config(tmp_path / "config.json") == EVERY_FIELD_CHANGED


@pytest.mark.parametrize(
    ("section", "change", "fault"),
    [
        ("train", {"stpes": 3}, "train.stpes is unknown."),
        ("train", {"steps": "3"}, "train.steps is '3', but should be int."),
        ("train", {"steps": True}, "train.steps is True, but should be int."),
        ("train", {"ema_decay": "no"}, "train.ema_decay is 'no', but should be float."),
        ("lora", {"targets": "all"}, "lora.targets is 'all', but should be"),
        ("samples", {"prompts": ["a", 1]}, "samples.prompts[1] is 1, but should be str."),
        ("checkpoints", None, "checkpoints is missing."),
    ],
)
def test_a_mistake_is_told_by_its_field(tmp_path: Path, section: str, change: dict | None, fault: str) -> None:
    path = tmp_path / "config.json"
    write_config(EVERY_FIELD_CHANGED, path)
    content = json.loads(path.read_text())
    if change is None:
        del content[section]
    else:
        content[section] |= change
    path.write_text(json.dumps(content | {"colour": "red"}))
    with pytest.raises(ValueError, match="is not a trainer configuration") as caught:
        read_config(path)
    assert fault in str(caught.value)
    assert "colour is unknown." in str(caught.value)  # all faults, not the first alone


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_config(tmp_path / "config.json")
