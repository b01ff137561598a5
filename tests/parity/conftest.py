"""The tiny base model for comparisons with diffusers."""

from pathlib import Path

import pytest

from worker.model.base_model import BaseModel, open_base_model


@pytest.fixture(scope="session")
def tiny_bases(tiny_paths: dict[str, Path]) -> dict[str, BaseModel]:
    return {layout: open_base_model(path) for layout, path in tiny_paths.items()}
