"""A tiny base model, written once for all tests of the model."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from worker.model.base_model import BaseModel, open_base_model

State = dict[str, Tensor]


@pytest.fixture(scope="session")
def tiny_bases(tiny_paths: dict[str, Path]) -> dict[str, BaseModel]:
    return {layout: open_base_model(path) for layout, path in tiny_paths.items()}


@pytest.fixture
def folder(tiny_paths: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the diffusers layout, to be spoilt. The tokenizers are left out: loraq brings its own."""
    return shutil.copytree(tiny_paths["diffusers"], tmp_path / "base", ignore=shutil.ignore_patterns("tokenizer*"))


@pytest.fixture
def rewrite() -> Callable[..., Path]:
    """Return a function that copies a safetensors file, its tensors and metadata changed on the way."""

    def rewrite(
        source: Path,
        target: Path,
        change: Callable[[State], object] = lambda state: None,
        metadata: dict[str, str] | None = None,
    ) -> Path:
        with safe_open(source, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            kept = file.metadata()
        change(state)
        save_file(state, target, metadata=kept if metadata is None else metadata)
        return target

    return rewrite


@pytest.fixture
def make_single_file(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a safetensors file of empty tensors of the given shapes."""

    def make(shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Path:
        file = tmp_path / "model.safetensors"
        save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, file, metadata=metadata)
        return file

    return make
