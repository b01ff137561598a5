"""The running average is the formula's, and lends itself out without a trace."""

from collections.abc import Callable

import torch

from worker.loop.ema import EMA


def test_average_follows_the_formula_with_its_warmup(make_setup: Callable) -> None:
    lora = make_setup().lora
    ema = EMA(lora, decay=0.5)
    theirs = {name: weight.clone() for name, weight in lora.state_dict().items()}
    for step in range(1, 12):
        for name, weight in lora.state_dict().items():
            weight.add_(step)
            decay = min(0.5, (1 + step) / (10 + step))
            theirs[name] = decay * theirs[name] + (1 - decay) * weight
        ema.update(lora, step)
    for name, weight in ema.weights.items():
        torch.testing.assert_close(weight, theirs[name])


def test_weights_are_lent_and_given_back_to_the_bit(make_setup: Callable) -> None:
    lora = make_setup().lora
    ema = EMA(lora, decay=0.9)
    for weight in lora.state_dict().values():
        weight.normal_()
    own = {name: weight.clone() for name, weight in lora.state_dict().items()}
    with ema.applied(lora):
        assert all(torch.equal(weight, ema.weights[name]) for name, weight in lora.state_dict().items())
        assert not all(torch.equal(weight, own[name]) for name, weight in lora.state_dict().items())
    assert all(torch.equal(weight, own[name]) for name, weight in lora.state_dict().items())
