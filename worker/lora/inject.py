"""Puts an adapter on a U-Net: replaces the Linear layers that `LoRAConfig.targets` names."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from worker.errors import LoRAInvalid
from worker.lora.config import LoRAConfig, Targets
from worker.lora.layer import LoRALinear

_TRANSFORMER = r"(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.attentions\.\d+"
_QKV = r"transformer_blocks\.\d+\.attn[12]\.to_[qkv]"
_OUT = r"transformer_blocks\.\d+\.attn[12]\.to_out\.0"
_REST = r"transformer_blocks\.\d+\.ff\.net\.(?:0\.proj|2)|proj_in|proj_out"
_PATTERNS: Mapping[Targets, re.Pattern[str]] = {  # of whole module paths
    "qkv": re.compile(rf"{_TRANSFORMER}\.(?:{_QKV})"),
    "attention": re.compile(rf"{_TRANSFORMER}\.(?:{_QKV}|{_OUT})"),
    "transformer": re.compile(rf"{_TRANSFORMER}\.(?:{_QKV}|{_OUT}|{_REST})"),
}


class LoRA:
    """The adapter on a U-Net: its layers by module path, and nothing of the base.

    Attributes:
        config: what was asked for.
        modules: module path, as `mid_block.attentions.0.transformer_blocks.0.attn1.to_q`, to layer; sorted by path.
    """

    def __init__(self, config: LoRAConfig, modules: Mapping[str, LoRALinear]) -> None:
        self.config = config
        self.modules = dict(sorted(modules.items()))

    def parameters(self) -> list[nn.Parameter]:
        """All trainable weights, float32, in a fixed order: A and B of each module, by path."""
        return list(self._named_parameters().values())

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """`<path>.lora_A` [r, in] and `<path>.lora_B` [out, r], float32, sharing memory with the layers."""
        return {name: parameter.detach() for name, parameter in self._named_parameters().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy weights in, in place. Raises ValueError if a name or a shape differs: nothing is copied then."""
        own = self._named_parameters()
        shapes = {name: tuple(parameter.shape) for name, parameter in own.items()}
        wrong = sorted(shapes.items() ^ {(name, tuple(tensor.shape)) for name, tensor in state.items()})
        if wrong:
            raise ValueError(f"{len(wrong)} adapter weights differ in name or shape, as {wrong[:5]}.")
        for name, parameter in own.items():
            parameter.copy_(state[name])

    def merged_weights(self) -> dict[str, Tensor]:
        """W + scale * B A of each target, under the key of the base's state dict, in the base's dtype."""
        return {f"{path}.weight": layer.merged_weight() for path, layer in self.modules.items()}

    def _named_parameters(self) -> dict[str, nn.Parameter]:
        weights = ((path, layer, name) for path, layer in self.modules.items() for name in ("lora_A", "lora_B"))
        return {f"{path}.{name}": getattr(layer, name) for path, layer, name in weights}


def inject(unet: nn.Module, config: LoRAConfig, seed: int) -> LoRA:
    """Replace the target layers of a frozen U-Net by LoRALinear, in place, on the devices where they are.

    Args:
        unet: a U-Net with diffusers' module names; no parameter may require grad.
        config: rank, alpha and targets.
        seed: of the generator that draws every A; the same seed gives the same adapter on every device.

    Raises:
        ValueError: a base parameter requires grad; it would be trained along.
        LoRAInvalid: no module matches, a target is no plain Linear, or the rank exceeds what a target can have.
    """
    trainable = [name for name, parameter in unet.named_parameters() if parameter.requires_grad]
    if trainable:
        raise ValueError(f"{len(trainable)} base weights require grad, as {trainable[0]}: freeze the U-Net first.")
    pattern = _PATTERNS[config.targets]
    targets = {path: module for path, module in sorted(unet.named_modules()) if pattern.fullmatch(path)}
    _check(targets, config)
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, LoRALinear] = {}
    for path, module in targets.items():
        assert isinstance(module, nn.Linear)
        parent, _, name = path.rpartition(".")
        layers[path] = LoRALinear(module, config.rank, config.scale, generator)
        setattr(unet.get_submodule(parent), name, layers[path])
    return LoRA(config, layers)


def _check(targets: Mapping[str, nn.Module], config: LoRAConfig) -> None:
    if not targets:
        raise LoRAInvalid(f'lora.targets is "{config.targets}", but no module of the U-Net matches: is it SDXL?')
    for path, module in targets.items():
        if isinstance(module, LoRALinear):
            raise LoRAInvalid(f"{path} carries an adapter already: put one on a freshly loaded U-Net.")
        if not isinstance(module, nn.Linear):
            raise LoRAInvalid(f"{path} is a {type(module).__name__}, not a Linear: is the base model SDXL?")
    linears = {path: module for path, module in targets.items() if isinstance(module, nn.Linear)}
    path, narrowest = min(linears.items(), key=lambda item: min(item[1].weight.shape))
    out, inn = narrowest.weight.shape
    if not 1 <= config.rank <= min(out, inn):
        raise LoRAInvalid(f"lora.rank is {config.rank}, but {path} is {out}x{inn}: use 1 to {min(out, inn)}.")
