"""Layers that have learnt a low-rank update: a Linear one and a convolution.

Shapes: `in` and `out` are the layer's features or channels, `r` the rank, `...` any leading dimensions, b batch, h and
w rows and columns, k the side of the kernel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.lora.low_rank import LowRank


class LoRALinear(LowRank, nn.Linear):
    """y = W x + b + scale * B (A x), see LowRank.

    `weight` [out, in] and `bias` [out] are the base's; float32 `lora_A` [r, in] and `lora_B` [out, r] join them.

    Args:
        base: the layer to take over; it should not be used any more.
        rank: r, 1..min(in, out).
        alpha: as asked for; `scale` is what is made of it.
        scale: of the update.
        generator: of the CPU, draws A, so that the weights depend neither on the device nor on the global seed.

    Raises:
        ValueError: rank is outside 1..min(in, out).
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, scale: float, generator: torch.Generator) -> None:
        nn.Module.__init__(self)  # not Linear's own, which would allocate a second weight
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self._adapt(rank, alpha, scale, generator)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, nn.Linear's own name
        """input [..., in] to [..., out], both in the base's dtype; the float32 weights are cast down to it here."""
        x = self.dropout.features(input) if self.dropout else input
        down = F.linear(x, self.lora_A.to(input.dtype))  # [..., r]
        down = self.dropout.directions(down, rank_dim=-1) if self.dropout else down
        up = F.linear(down, self.lora_B.to(input.dtype))  # [..., out]
        return self._combine(F.linear(input, self.weight, self.bias), up)

    def _combine(self, output: Tensor, up: Tensor) -> Tensor:
        return torch.add(output, up, alpha=self.scale)


class LoRAConv2d(LowRank, nn.Conv2d):
    """The same for a convolution, as sd-scripts and LyCORIS make it: A is a convolution like the base's, B is 1x1.

    `weight` [out, in, k, k] and `bias` [out] are the base's; float32 `lora_A` [r, in, k, k], `lora_B` [out, r, 1, 1].

    Args, raises: as LoRALinear's; r is at most min(out, in * k * k).
    """

    def __init__(self, base: nn.Conv2d, rank: int, alpha: float, scale: float, generator: torch.Generator) -> None:
        nn.Module.__init__(self)  # not Conv2d's own, which would allocate a second weight
        assert (base.groups, base.padding_mode) == (1, "zeros")  # SDXL has no other convolutions
        for name in (*nn.Conv2d.__constants__, "transposed"):
            setattr(self, name, getattr(base, name))
        self.weight, self.bias = base.weight, base.bias
        self._adapt(rank, alpha, scale, generator)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, nn.Conv2d's own name
        """input [b, in, h, w] to [b, out, h', w'], both in the base's dtype."""
        x = self.dropout.features(input) if self.dropout else input
        down = self._convolve(x, self.lora_A.to(input.dtype), None)  # [b, r, h', w']
        down = self.dropout.directions(down, rank_dim=1) if self.dropout else down
        up = F.conv2d(down, self.lora_B.to(input.dtype))  # [b, out, h', w']
        return self._combine(self._convolve(input, self.weight, self.bias), up)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)  # pyright: ignore[reportArgumentType]

    def _combine(self, output: Tensor, up: Tensor) -> Tensor:
        return torch.add(output, up, alpha=self.scale)
