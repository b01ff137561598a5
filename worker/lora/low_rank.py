"""What every kind of adapted layer has in common: two small matrices beside a frozen weight.

Shapes: `in` and `out` are the layer's features or channels, `r` the rank, k the side of a convolution's kernel.
"""

import math

import torch
from torch import Tensor, nn

from worker.lora.dropout import Dropout


class LowRank(nn.Module):
    """A mix-in for layers: y = (W x + b) + scale * B (A x), with W and b frozen and only A and B trained.

    LoRA: Low-Rank Adaptation of Large Language Models, Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3.
    A is drawn from kaiming_uniform(a=sqrt(5)) and B is zero, as in the paper's code, so the first output is W x + b.

    A layer takes over the very Parameters of the layer that it replaces, so state-dict keys of the base do not change:
    `weight` and `bias` in the base's dtype; float32 `lora_A` and `lora_B` join them.

    Attributes:
        trained: names of the trained weights.
        rank, alpha: as the person asked for.
        scale: what B (A x) is multiplied by.
    """

    weight: Tensor
    trained: tuple[str, ...] = ("lora_A", "lora_B")

    def _adapt(self, rank: int, alpha: float, scale: float, generator: torch.Generator) -> None:
        """Add A and B on the weight's device. The layer has its weight by now.

        Raises:
            ValueError: rank is outside 1..min(in, out).
        """
        out, *inner = self.weight.shape  # a convolution's A spans its kernel: [r, in, k, k]
        limit = min(out, math.prod(inner))
        if not 1 <= rank <= limit:
            shape = f"{out}x{math.prod(inner)}"
            raise ValueError(f"rank is {rank}, but the layer is {shape}: use 1 to {limit}.")
        self.rank, self.alpha, self.scale = rank, alpha, scale
        self.dropout: Dropout | None = None
        lora_A = torch.empty(rank, *inner)  # noqa: N806, the field's own name
        nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5), generator=generator)
        device = self.weight.device
        self.lora_A = nn.Parameter(lora_A.to(device))  # [r, in] or [r, in, k, k]
        self.lora_B = nn.Parameter(torch.zeros(out, rank, *(1 for _ in inner[1:]), device=device))  # [out, r(, 1, 1)]

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        return {name: getattr(self, name) for name in self.trained}

    def update(self) -> Tensor:
        """scale * B A, in the shape of the weight, float32."""
        return self.scale * (self.lora_B.flatten(1) @ self.lora_A.flatten(1)).view(self.weight.shape)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The weight of a plain layer that does what this one does: computed in float32, given in the base's dtype."""
        return (self.weight.float() + self.update()).to(self.weight.dtype)
