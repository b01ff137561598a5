"""What adapter to train. Imports no torch, so that the worker's light processes can build one."""

from dataclasses import dataclass
from typing import Literal

Targets = Literal["qkv", "attention", "transformer"]


@dataclass(frozen=True)
class LoRAConfig:
    rank: int = 4
    """Rank r of the update, 1..min(in, out) of every target. Costs r * (in + out) * 4 bytes a layer."""

    alpha: float = 16.0
    """The update is scaled by alpha / rank, so that a change of rank needs no new learning rate."""

    targets: Targets = "qkv"
    """Which Linear layers of the U-Net's transformers are adapted. For SDXL, modules and parameters at rank 4:

    qkv          to_q, to_k, to_v of both attentions                        420     4,474,880
    attention    the same and to_out.0                                      560     5,806,080
    transformer  the same, both feed-forward layers, proj_in and proj_out   722    10,639,360
    """

    @property
    def scale(self) -> float:
        """alpha / rank: what B(Ax) is multiplied by."""
        return self.alpha / self.rank
