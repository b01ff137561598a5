"""`loraq merge`, as a person runs it."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from api.cli import app

NAME = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
KEY = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture
def lora(tmp_path: Path, tiny_paths: dict[str, Path]) -> Path:
    """A LoRA on one layer that adds 1 to every weight."""
    width = safetensors.torch.load_file(tiny_paths["single_file"])[KEY].shape[0]
    tensors = {f"{NAME}.lora_down.weight": torch.ones(1, width), f"{NAME}.lora_up.weight": torch.ones(width, 1)}
    safetensors.torch.save_file(tensors | {f"{NAME}.alpha": torch.tensor(1.0)}, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def test_merge_writes_the_checkpoint_and_says_so(tmp_path: Path, tiny_paths: dict[str, Path], lora: Path) -> None:
    base, out = tiny_paths["single_file"], tmp_path / "merged.safetensors"
    ended = CliRunner().invoke(app, ["merge", str(base), str(lora), "-o", str(out), "--scale", "-2", "--json"])
    assert (ended.exit_code, json.loads(ended.stdout)) == (0, {"out": str(out), "layers": 1})
    before, after = safetensors.torch.load_file(base), safetensors.torch.load_file(out)
    assert torch.equal(after[KEY], (before[KEY].float() - 2).bfloat16())
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items() if key != KEY)

    again = CliRunner().invoke(app, ["merge", str(base), str(lora), "-o", str(out)])
    assert again.exit_code == 3
    assert "is there already" in again.stderr


def test_merge_refuses_what_is_no_lora(tmp_path: Path, tiny_paths: dict[str, Path]) -> None:
    base = str(tiny_paths["single_file"])
    ended = CliRunner().invoke(app, ["merge", base, base, "--out", str(tmp_path / "merged.safetensors"), "--json"])
    assert ended.exit_code == 3
    error = json.loads(ended.stdout)["error"]
    assert error["code"] == "invalid_spec"
    assert "whole checkpoints" in error["detail"]
    assert list(tmp_path.iterdir()) == []
