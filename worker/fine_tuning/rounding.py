"""Training bfloat16 weights without copies in float32: each update is made in float32 and rounded by chance.

Rounded to the nearest, an update of less than half a unit in the last place, 0.2 to 0.4 % of a weight, is lost, and so
are most of a fine-tuning's: the weight stays where it was for good. Rounded up with a chance of how far it has come, it
arrives on average. Gupta et al. 2015, https://arxiv.org/abs/1502.02551, section 3.1; for bfloat16 weights Zamirai et
al. 2020, https://arxiv.org/abs/2010.06192.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from worker.seeds import generator

_LOST_BITS = 16  # of a float32's mantissa, which bfloat16 has not


def round_stochastically(values: Tensor, source: torch.Generator) -> Tensor:
    """float32 to bfloat16, of any shape: to one of both neighbours, to the nearer one more often. The mean is exact.

    Args:
        values: float32; what bfloat16 has exactly stays as it is.
        source: of the chance, on the values' device.
    """
    chance = torch.randint(0, 1 << _LOST_BITS, values.shape, generator=source, device=values.device, dtype=torch.int32)
    bits = values.contiguous().view(torch.int32) + chance  # carries into the bits that stay, as often as it should
    return bits.bitwise_and_(-1 << _LOST_BITS).view(torch.float32).to(torch.bfloat16)  # exact


class StochasticRounding(Optimizer):
    """Moves bfloat16 weights as another optimizer moves float32 ones, weight by weight.

    That optimizer sees one weight at a time, in a copy in float32 that is gone after it, and keeps its own state in
    float32. So it must treat each by itself: AdamW, Adafactor and Lion do, Prodigy, with one step size for all, does
    not. The roundings are drawn from (seed, step, number of the weight): a resumed training rounds as it would have.

    Args:
        parameters: bfloat16, or groups of them.
        make: an optimizer of the float32 parameters that it is given.
        seed: of the roundings.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        make: Callable[[list[nn.Parameter]], Optimizer],
        seed: int,
    ) -> None:
        super().__init__(parameters, {"lr": 0.0, "roundings": 0})
        self._seed = seed
        self._copies: dict[nn.Parameter, nn.Parameter] = {}
        self._optimizers: dict[nn.Parameter, Optimizer] = {}
        for group in self.param_groups:
            for weight in group["params"]:
                self._copies[weight] = nn.Parameter(torch.empty(0, device=weight.device))
                self._optimizers[weight] = make([self._copies[weight]])
                group["lr"] = self._optimizers[weight].param_groups[0]["lr"]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        number = 0
        for group in self.param_groups:
            group["roundings"] += 1
            for weight in group["params"]:
                number += 1
                if weight.grad is not None:
                    source = generator("rounding", self._seed, group["roundings"], number, device=weight.device)
                    self._move(weight, group["lr"], source)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of every weight; unlike torch's own, without rounding it to the weight's dtype."""
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
        for number, weight in enumerate(self._optimizers):
            if number in state_dict["state"]:
                optimizer = self._optimizers[weight]
                optimizer.load_state_dict(optimizer.state_dict() | {"state": {0: state_dict["state"][number]}})
                self.state[weight] = optimizer.state[self._copies[weight]]

    def _move(self, weight: nn.Parameter, lr: float, source: torch.Generator) -> None:
        copy, optimizer = self._copies[weight], self._optimizers[weight]
        assert weight.grad is not None
        copy.data, copy.grad = weight.float(), weight.grad.float()
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        weight.copy_(round_stochastically(copy.data, source))
        copy.grad, copy.data = None, torch.empty(0, device=weight.device)
        self.state[weight] = optimizer.state[copy]
