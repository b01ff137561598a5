"""All weights of a U-Net as what a training moves, in place of an adapter's."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from worker.lora.dropout import DropoutPlace
from worker.named_weights import copy_in


class FullWeights:
    """Every weight of a U-Net, trained.

    Without masters the U-Net's own weights are moved. With masters it computes with roundings of theirs: a gradient is
    added to its master's as soon as backward has made it, in the master's dtype, and freed, so that those of the whole
    model never exist twice; `write_back` rounds the masters again.

    Args:
        unet: frozen until now.
        masters: the same weights in float32, by the names of `unet`; they become trainable.

    Attributes:
        dropout: as an adapter has it; no layer here drops out.
    """

    checkpoint_file = "unet.safetensors"

    def __init__(self, unet: nn.Module, masters: Mapping[str, nn.Parameter] | None = None) -> None:
        self.dropout = DropoutPlace()
        own = dict(sorted(unet.named_parameters()))
        self._trained = own if masters is None else {name: masters[name] for name in own}
        for weight in (*own.values(), *self._trained.values()):
            weight.requires_grad_(True)
        self._roundings: list[Tensor] = []
        if masters is not None:
            self._roundings = list(own.values())
            for name, weight in own.items():
                weight.register_post_accumulate_grad_hook(_handing_over_to(masters[name]))

    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer moves, by path."""
        return list(self._trained.values())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The same as an optimizer takes them: one group."""
        return [{"params": self.parameters()}]

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """The trained weights under the U-Net's own names, sharing their memory."""
        return {name: weight.detach() for name, weight in self._trained.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy weights in, in place. Raises ValueError if a name or a shape differs: nothing is copied then."""
        copy_in(self._trained, state, "weights of the U-Net")
        self.write_back()

    @torch.no_grad()
    def write_back(self) -> None:
        """Let the U-Net compute with the weights as they are now."""
        if self._roundings:
            torch._foreach_copy_(self._roundings, [*self._trained.values()])  # pyright: ignore[reportPrivateImportUsage]


def _handing_over_to(master: nn.Parameter) -> Callable[[Tensor], None]:
    def hand_over(weight: Tensor) -> None:
        assert weight.grad is not None
        if master.grad is None:
            master.grad = weight.grad.to(master.dtype)
        else:
            master.grad += weight.grad
        weight.grad = None

    return hand_over
