"""BF16 is enough: with FP32 weights in the adapter an SDXL that draws learns in BF16 what it learns in FP32.

In miniature; benchmarks/results/precision_* has whole lessons of several seeds on a GPU.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.precision import Bench, Point, Task, learn, round_to_bf16
from benchmarks.precision_figures import plot, table

STEPS = 40
TASK = Task(1e-4, 0, (), STEPS, points=1, drawn=0, device="cpu", deadline=float("inf"))


def test_bf16_learns_what_fp32_learns_and_an_adapter_in_bf16_does_not() -> None:
    bench, reference = Bench(torch.device("cpu")), dict[int, Tensor]()
    ends = {arm: list(learn(bench, TASK, arm, reference))[-1] for arm in ("fp32", "bf16", "pure_bf16")}
    gap = {arm: end.validation_loss - ends["fp32"].validation_loss for arm, end in ends.items()}
    print(gap)
    assert ends["bf16"].moved_a is not None
    assert ends["bf16"].moved_a > 0.95  # the updates arrive
    assert ends["pure_bf16"].moved_a is not None
    assert ends["pure_bf16"].moved_a < 0.5  # most of them are less than half of what BF16 can add to a weight
    assert gap["pure_bf16"] > 4 * abs(gap["bf16"])  # measured: 10 times, and 400 times after 300 steps


@pytest.fixture
def weight() -> nn.Parameter:
    """10,000 times a number between two of BF16's: a tenth of the way from 1 to its next, 1 + 2^-7."""
    return nn.Parameter(torch.full((10_000,), 1 + 0.1 * 2**-7))


def test_by_lot_the_mean_stays_and_to_the_nearest_it_does_not(weight: nn.Parameter) -> None:
    value = weight[0].item()
    nearest = nn.Parameter(weight.detach().clone())
    round_to_bf16([weight], torch.Generator().manual_seed(0))
    round_to_bf16([nearest], None)
    assert set(weight.tolist()) == {1.0, 1 + 2**-7}
    assert abs(weight.mean().item() - value) < 5 * 0.3 * 2**-7 / 100  # five standard errors: sqrt(0.1 * 0.9) = 0.3
    assert set(nearest.tolist()) == {1.0}


@pytest.fixture
def make_point() -> Callable[..., dict[str, object]]:
    start = Point("fp32", 1e-4, 0, 10, 0.5, 0.0, 1.0, 1.0, 0.25, 1.0)
    return lambda **changes: vars(replace(start, **changes))


def test_table_and_curve_tell_gaps_seed_by_seed(make_point: Callable[..., dict[str, object]], tmp_path: Path) -> None:
    points = [make_point(seed=seed, validation_loss=0.5 + seed) for seed in (0, 1)]
    points += [make_point(arm="bf16", seed=seed, validation_loss=0.6 + seed, distance=0.2) for seed in (0, 1)]
    row = table(points).splitlines()[-1]
    assert "| 1.10000 ± 0.70711 | 0.10000 ± 0.00000 | 0.200 |" in row
    plot(points, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
