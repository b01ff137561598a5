"""The ways to train that benchmarks.precision compares, in which the same lesson begins with the same weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from worker.fine_tuning.rounding import StochasticRounding
from worker.fine_tuning.weights import FullWeights
from worker.loop.config import TrainConfig
from worker.loop.optim import make_optimizer
from worker.loop.train import TrainState
from worker.lora.config import LoRAConfig
from worker.lora.inject import LoRA, inject
from worker.model.base_model import BaseModel
from worker.model.unet import UNet
from worker.model.weights import load_unet

LORA = LoRAConfig(rank=8, alpha=16.0, targets="locon")  # of jobs/examples/stars.yaml


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    base: torch.dtype = torch.float32  # of the U-Net that computes, and of its activations
    whole: bool = False  # all of the U-Net is trained, in place of an adapter
    weights: Literal["float32", "stochastic", "nearest"] = "float32"
    """What is trained. In FP32 (of a whole U-Net in BF16: as masters beside it); or in BF16, gradients too, each update
    made and rounded stochastically by loraq's optimizer, or by torch's alone, whose averages are BF16 then."""

    other_draws: bool = False  # other noise, timesteps and order of pictures


ARMS = {
    "fp32": Arm(),
    "bf16": Arm(base=torch.bfloat16),  # loraq's way
    "pure_bf16": Arm(base=torch.bfloat16, weights="nearest"),  # as people do who cast the whole model
    "stochastic": Arm(base=torch.bfloat16, weights="stochastic"),
    "other_draws": Arm(other_draws=True),  # what chance alone does
    "whole_fp32": Arm(whole=True),
    "whole_bf16": Arm(base=torch.bfloat16, whole=True),  # fine_tuning: {weights: float32}
    "whole_stochastic": Arm(base=torch.bfloat16, whole=True, weights="stochastic"),  # {weights: bfloat16}
    "whole_pure_bf16": Arm(base=torch.bfloat16, whole=True, weights="nearest"),
}


def reference_of(name: str) -> str:
    """The arm in FP32 that an arm is compared with."""
    return "whole_fp32" if ARMS[name].whole else "fp32"


def begin(
    arm: Arm, base: BaseModel, config: TrainConfig, seed: int, device: torch.device
) -> tuple[UNet, LoRA | FullWeights, TrainState]:
    """What predicts, what of it is trained, and the state before the first step. `seed` is the adapter's."""
    unet = load_unet(base, device, arm.base)
    trained: LoRA | FullWeights
    if arm.whole:
        beside = arm.base == torch.bfloat16 and arm.weights == "float32"
        trained = FullWeights(unet, dict(load_unet(base, device, torch.float32).named_parameters()) if beside else None)
    else:
        trained = inject(unet, LORA, seed)
    if arm.weights != "float32":
        for weight in trained.parameters():
            weight.data = weight.data.bfloat16()
    state = TrainState.begin(trained, config)
    assert isinstance(state.optimizer, StochasticRounding) == (arm.weights != "float32")
    if arm.weights == "nearest":
        state.optimizer = make_optimizer(trained.parameters(), config.optimizer)
    return unet, trained, state


@torch.no_grad()
def changes(trained: LoRA | FullWeights, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the training has added to the U-Net's weights, by their names, in FP32 whatever it is kept in."""
    if isinstance(trained, FullWeights):
        return {name: weight.float() - base[name] for name, weight in trained.state_dict().items()}
    return {
        f"{path}.weight": layer.scale
        * (layer.lora_B.float().flatten(1) @ layer.lora_A.float().flatten(1)).view_as(layer.weight)
        for path, layer in trained.modules.items()
    }


def rows(trained: LoRA | FullWeights) -> list[Tensor]:
    """All of lora_A in one row and all of lora_B in another; or all of a U-Net in one."""
    parts = trained.parameters()
    groups = [parts[::2], parts[1::2]] if isinstance(trained, LoRA) else [parts]  # A and B of each layer in turn
    return [torch.cat([weight.detach().flatten() for weight in group]) for group in groups]
