"""The steps so far are always in the file, and a training that goes on keeps those before it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from worker.loop.metrics import Metrics, smoothed
from worker.loop.train import StepResult


def result(step: int) -> StepResult:
    return StepResult(step, 1 / step, 1e-4, 0.1, None)


def test_each_step_is_in_the_file_at_once(tmp_path: Path) -> None:
    with Metrics(tmp_path / "new" / "metrics.jsonl") as metrics:
        for step in (1, 2):
            metrics.add(result(step))
            lines = [json.loads(line) for line in metrics.path.read_text().splitlines()]
            assert lines[-1] == {"step": step, "loss": 1 / step, "lr": 1e-4, "seconds": 0.1, "peak_bytes": None}


def test_a_training_that_goes_on_keeps_its_earlier_steps_and_no_others(tmp_path: Path) -> None:
    with Metrics(tmp_path / "earlier.jsonl") as earlier:
        earlier.add(result(1))
    (tmp_path / "metrics.jsonl").write_text("what another attempt left\n")
    with Metrics(tmp_path / "metrics.jsonl", earlier.path) as metrics:
        metrics.add(result(2))
    assert [json.loads(line)["step"] for line in metrics.path.read_text().splitlines()] == [1, 2]
    assert metrics.losses == [1.0, 0.5]


@pytest.mark.parametrize(("count", "ends"), [(1, (1, 1)), (9, (1, 9)), (20, (1.5, 19.5))])
def test_the_ends_are_means_of_a_tenth(tmp_path: Path, count: int, ends: tuple[float, float]) -> None:
    with Metrics(tmp_path / "metrics.jsonl") as metrics:
        metrics.losses = [float(i) for i in range(1, count + 1)]
        assert metrics.ends() == ends


def test_smoothing_leaves_a_level_curve_level() -> None:
    assert smoothed([3.0] * 50) == pytest.approx([3.0] * 50)
    assert smoothed([1.0, 2.0], smoothing=0.5) == pytest.approx([1.0, 5 / 3])


def test_the_curve_is_a_picture(tmp_path: Path) -> None:
    with Metrics(tmp_path / "metrics.jsonl") as metrics:
        for step in range(1, 30):
            metrics.add(result(step))
    metrics.plot(tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == (800, 450)
        colours = image.convert("RGB").getcolors(1 << 20)
    assert colours
    assert len(colours) > 20  # more than an empty sheet
