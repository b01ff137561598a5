"""Stochastic rounding: right on average, the same again, and with it bfloat16 weights follow float32 ones."""

import copy
import itertools
import json

import pytest
import torch
from torch import nn

from worker.fine_tuning.rounding import StochasticRounding, round_stochastically
from worker.loop.config import OptimizerConfig, OptimizerName
from worker.loop.optim import make_optimizer
from worker.seeds import generator

NAMES: tuple[OptimizerName, ...] = ("adamw", "adamw8bit", "adafactor", "lion")


def rounding(weights: list[nn.Parameter], config: OptimizerConfig, seed: int = 0) -> StochasticRounding:
    return StochasticRounding(weights, lambda each: make_optimizer(each, config), seed)


def test_a_number_goes_to_a_neighbour_as_often_as_it_is_near_and_what_fits_stays() -> None:
    low, high = 1.0, 1.0 + 2**-7  # neighbours in bfloat16, which has 8 bits of mantissa
    share = 0.3
    values = torch.full((100_000,), low + share * (high - low))
    rounded = round_stochastically(torch.cat([values, -values]), generator("test", 0))
    assert rounded.dtype == torch.bfloat16
    up, down = rounded.float().split(100_000)
    assert set(up.unique().tolist()) == {low, high}
    assert set(down.unique().tolist()) == {-low, -high}
    deviation = (share * (1 - share) / 100_000) ** 0.5
    for part in (up, -down):
        assert abs((part == high).float().mean().item() - share) < 5 * deviation
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, 3.0e38, 1e-38, float("inf")]).bfloat16()
    assert torch.equal(round_stochastically(exact.float(), generator("test", 1)), exact)
    assert round_stochastically(torch.tensor([float("nan")]), generator("test", 2)).isnan().all()


@pytest.mark.parametrize("name", NAMES)
def test_updates_too_small_for_bfloat16_arrive_on_average(name: OptimizerName) -> None:
    """A hundred updates of a twentieth of a unit in the last place: float32 moves five units, plain rounding none."""
    start = torch.ones(64, 96).bfloat16()  # large enough for 8-bit moments
    unit = 2.0**-7
    config = OptimizerConfig(name, learning_rate=unit / 20, weight_decay=0.0)
    dtypes = (torch.float32, torch.bfloat16, torch.bfloat16)
    masters, rounded, plain = (nn.Parameter(start.clone().to(dtype)) for dtype in dtypes)
    optimizers = [make_optimizer([masters], config), rounding([rounded], config), make_optimizer([plain], config)]
    for _ in range(100):
        for weight, optimizer in zip((masters, rounded, plain), optimizers, strict=True):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
    moved = (masters - 1).mean().item()
    assert moved == pytest.approx(-5 * unit, rel=0.05)
    assert (rounded.float() - 1).mean().item() == pytest.approx(moved, rel=0.05)
    if name != "adamw8bit":  # bitsandbytes has no other than float32 on a CPU
        assert torch.equal(plain, start)  # not one of them has arrived


@pytest.mark.parametrize("name", NAMES)
def test_its_state_is_kept_in_float32_and_resumed_to_the_bit(name: OptimizerName) -> None:
    config = OptimizerConfig(name, learning_rate=1e-2)
    torch.manual_seed(0)
    start, gradients = torch.randn(64, 96).bfloat16(), torch.randn(6, 64, 96).bfloat16()

    def step(weight: nn.Parameter, optimizer: StochasticRounding, numbers: range) -> None:
        for number in numbers:
            weight.grad = gradients[number]
            optimizer.step()

    whole = nn.Parameter(start.clone())
    optimizer = rounding([whole], config)
    step(whole, optimizer, range(6))
    assert all(value.dtype != torch.bfloat16 for value in optimizer.state[whole].values() if torch.is_tensor(value))

    part = nn.Parameter(start.clone())
    before = rounding([part], config)
    step(part, before, range(2))
    for numbers in (range(2, 3), range(3, 6)):
        saved = copy.deepcopy(torch.optim.Optimizer.state_dict(before))
        saved["param_groups"] = json.loads(json.dumps(saved["param_groups"]))
        part = nn.Parameter(part.detach().clone())
        before = rounding([part], config)
        before.load_state_dict(saved)
        step(part, before, numbers)
    assert torch.equal(part, whole)

    other = nn.Parameter(start.clone())
    step(other, rounding([other], config, seed=1), range(6))
    assert not torch.equal(other, whole)  # the seed decides the roundings


def test_a_weight_without_gradient_stays_and_the_others_are_rounded_as_ever() -> None:
    config = OptimizerConfig(learning_rate=1e-2)
    weights = [nn.Parameter(torch.ones(8, 8).bfloat16()) for _ in range(2)]
    optimizer = rounding(weights, config)
    weights[1].grad = torch.ones(8, 8).bfloat16()
    optimizer.step()
    assert torch.equal(weights[0], torch.ones(8, 8).bfloat16())
    assert not torch.equal(weights[1], torch.ones(8, 8).bfloat16())


def test_each_step_and_each_weight_is_rounded_by_its_own_chance() -> None:
    config = OptimizerConfig("lion", learning_rate=2.0**-9, weight_decay=0.0)  # the same quarter of a unit every time
    weights = [nn.Parameter(torch.ones(64, 96).bfloat16()) for _ in range(2)]
    optimizer = rounding(weights, config)
    seen: list[torch.Tensor] = []
    for _ in range(2):
        for weight in weights:
            weight.data.fill_(1.0)
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        seen += [weight.detach().clone() for weight in weights]
    for one, other in itertools.combinations(seen, 2):
        assert not torch.equal(one, other)
