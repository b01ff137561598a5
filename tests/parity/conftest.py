"""The tiny base model for comparisons with diffusers."""

from pathlib import Path

import pytest

from worker.model.base_model import BaseModel, open_base_model
from worker.model.tiny import write_tiny_base


@pytest.fixture(scope="session")
def tiny_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny base model's path in each layout. Read only."""
    return write_tiny_base(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_bases(tiny_paths: dict[str, Path]) -> dict[str, BaseModel]:
    return {layout: open_base_model(path) for layout, path in tiny_paths.items()}
