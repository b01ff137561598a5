"""Folders of small made pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worker.model.base_model import BaseModel, open_base_model
from worker.model.tiny import write_tiny_base


@pytest.fixture
def make_picture(tmp_path: Path) -> Callable[..., Path]:
    """Write a picture of noise with its caption into tmp_path/dataset; `caption=None` leaves the caption out."""

    def make(name: str, size: tuple[int, int] = (96, 64), mode: str = "RGB", caption: str | None = "a thing") -> Path:
        path = tmp_path / "dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(len(name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(values).convert(mode).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    return make


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """The tiny base model. Read only."""
    folder = tmp_path_factory.mktemp("tiny")
    return open_base_model(write_tiny_base(folder, layout="single_file")["single_file"])
