"""The demo's own job teaches the drawing model a shape that it was never shown, and costs it none that it knows."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.drawing.artist import Artist
from benchmarks.drawing.checker import rates
from benchmarks.drawing.exam import questions
from jobs.settings import Settings
from jobs.spec_text import read_spec
from worker.config import Places, trainer_config
from worker.loop.training import Training
from worker.lora.merge import merge_into
from worker.model.weights import load_unet, open_base_model

ROOT = Path(__file__).parents[2]
BASE = ROOT / "tests" / "assets" / "drawing-sdxl.safetensors"
EXAMPLES = ROOT / "jobs" / "examples"
COUNT = 14  # pictures a rate; each colour twice


@pytest.fixture(scope="module")
def lora_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the job leaves, trained here without a queue."""
    spec = read_spec((EXAMPLES / "stars.yaml").read_text(encoding="utf-8"))
    output = tmp_path_factory.mktemp("output")
    places = Places(
        base_model=BASE,
        dataset=EXAMPLES / "stars",
        regularisation=EXAMPLES / "shapes",
        init_from=None,
        output=output,
        cache=tmp_path_factory.mktemp("cache"),
    )
    config = trainer_config(spec, places, Settings())
    Training(replace(config, samples=replace(config.samples, prompts=())), lambda *_, **__: None, lambda: False).run()
    return output / "lora.safetensors"


def rates_of(artist: Artist) -> tuple[float, float]:
    """Shares of stars and of known shapes that are drawn right, 0..1."""
    stars, known = questions("star", COUNT)
    return rates(artist.judge(stars, seed=1))["right"], rates(artist.judge(known, seed=1))["right"]


def test_the_lesson_is_learnt_and_nothing_is_forgotten(lora_file: Path) -> None:
    stars_before, known_before = rates_of(Artist(BASE))
    unet = load_unet(open_base_model(BASE), torch.device("cpu"), torch.float32)
    merge_into(unet, lora_file)
    stars_after, known_after = rates_of(Artist(BASE, unet))
    print(f"stars {stars_before:.0%} to {stars_after:.0%}, known shapes {known_before:.0%} to {known_after:.0%}")
    assert stars_before <= 0.1
    assert known_before >= 0.9
    assert stars_after >= 0.8
    assert known_after >= 0.9
