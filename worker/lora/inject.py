"""Puts an adapter on a model: replaces the layers that `LoRAConfig` chooses."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from worker.errors import LoRAInvalid
from worker.lora.config import LoRAConfig
from worker.lora.dora import DoRAConv2d, DoRALinear
from worker.lora.dropout import Dropout, DropoutPlace
from worker.lora.layer import LoRAConv2d, LoRALinear
from worker.lora.low_rank import LowRank
from worker.lora.targets import choose
from worker.named_weights import copy_in


class LoRA:
    """The adapter on a model: its layers by module path, and nothing of the base.

    Attributes:
        config: what was asked for.
        modules: module path, as `mid_block.attentions.0.transformer_blocks.0.attn1.to_q`, to layer; sorted by path.
            Those on the text encoders begin with `text_encoder.` and `text_encoder_2.`.
        dropout: tells all layers where the training is.
    """

    checkpoint_file = "lora.safetensors"

    def __init__(self, config: LoRAConfig, modules: Mapping[str, LowRank], dropout: DropoutPlace | None = None) -> None:
        self.config = config
        self.modules = dict(sorted(modules.items()))
        self.dropout = dropout or DropoutPlace()

    def parameters(self) -> list[nn.Parameter]:
        """All trainable weights, float32, in a fixed order: A and B of each module, by path.

        Some of the text encoders' get no gradient: SDXL reads their penultimate outputs, so all of the first one's last
        layer is left as it began, as it is by sd-scripts.
        """
        return list(self._named_parameters().values())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The same as an optimizer takes them: those of the text encoders apart, with `lr_scale`, if there are any."""
        text = self.config.text_encoders
        if text is None:
            return [{"params": self.parameters()}]
        named = self._named_parameters()
        groups = {False: [], True: []}
        for name, parameter in named.items():
            groups[name.startswith("text_encoder")].append(parameter)
        scales = {False: 1.0, True: text.learning_rate_scale}
        return [{"params": group, "lr_scale": scales[of_text]} for of_text, group in groups.items() if group]

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """`<path>.lora_A`, `<path>.lora_B` and DoRA's `<path>.lora_magnitude`, float32, sharing the layers' memory."""
        return {name: parameter.detach() for name, parameter in self._named_parameters().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy weights in, in place. Raises ValueError if a name or a shape differs: nothing is copied then."""
        copy_in(self._named_parameters(), state, "adapter weights")

    def write_back(self) -> None:
        """Nothing to do: the layers compute with the very weights that are trained."""

    def merged_weights(self) -> dict[str, Tensor]:
        """The weight of each target with its update in it, under the key of the base's state dict, in its dtype."""
        return {f"{path}.weight": layer.merged_weight() for path, layer in self.modules.items()}

    def _named_parameters(self) -> dict[str, nn.Parameter]:
        weights = ((path, layer.parameters_by_name()) for path, layer in self.modules.items())
        return {f"{path}.{name}": weight for path, named in weights for name, weight in named.items()}


def inject(
    unet: nn.Module, config: LoRAConfig, seed: int, text_encoders: Mapping[str, nn.Module] | None = None
) -> LoRA:
    """Replace the target layers of frozen models by adapted ones, in place, on the devices where they are.

    Args:
        unet: a U-Net with diffusers' module names; no parameter may require grad.
        config: what to adapt, and how.
        seed: of the generator that draws every A; the same seed gives the same adapter on every device.
        text_encoders: by the start of their modules' paths, `text_encoder.text_model` and `text_encoder_2.text_model`;
            as `worker.model.text_encoders.TextEncoders.towers` gives them.

    Raises:
        ValueError: a base parameter requires grad; it would be trained along.
        LoRAInvalid: a pattern matches nothing, a target is neither Linear nor Conv2d, or a rank exceeds what a target
            can have.
    """
    roots = {"": unet} | dict(text_encoders or {})
    modules = {f"{at}.{path}" if at else path: module for at, root in roots.items() for path, module in _layers(root)}
    trainable = [name for root in roots.values() for name, weight in root.named_parameters() if weight.requires_grad]
    if trainable:
        raise ValueError(f"{len(trainable)} base weights require grad, as {trainable[0]}: freeze the U-Net first.")
    ranks = choose(modules, config)
    _check({path: modules[path] for path in ranks}, {path: rank for path, (rank, _) in ranks.items()})
    generator, place = torch.Generator().manual_seed(seed), DropoutPlace()
    layers: dict[str, LowRank] = {}
    for number, (path, (rank, alpha)) in enumerate(ranks.items()):
        layer = _adapted(modules[path], config, rank, alpha, generator)
        if config.dropout or config.rank_dropout:
            layer.dropout = Dropout(config.dropout, config.rank_dropout, number, place)
        at = max((at for at in roots if path.startswith(at)), key=len)
        parent, _, name = path.removeprefix(at).lstrip(".").rpartition(".")
        setattr(roots[at].get_submodule(parent), name, layer)
        layers[path] = layer
    return LoRA(config, layers, place)


def _layers(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """Everything that could get an adapter."""
    return [(path, module) for path, module in root.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def _adapted(
    module: nn.Module, config: LoRAConfig, rank: int, alpha: float, generator: torch.Generator
) -> LoRALinear | LoRAConv2d:
    scale = config.scale_of(rank, alpha)
    if isinstance(module, nn.Conv2d):
        return (DoRAConv2d if config.dora else LoRAConv2d)(module, rank, alpha, scale, generator)
    assert isinstance(module, nn.Linear)
    return (DoRALinear if config.dora else LoRALinear)(module, rank, alpha, scale, generator)


def _check(targets: Mapping[str, nn.Module], ranks: Mapping[str, int]) -> None:
    for path, module in targets.items():
        if isinstance(module, LowRank):
            raise LoRAInvalid(f"{path} carries an adapter already: put one on a freshly loaded U-Net.")
    weights = {path: module.get_parameter("weight").flatten(1) for path, module in targets.items()}
    too_high = {path: weight for path, weight in weights.items() if not 1 <= ranks[path] <= min(weight.shape)}
    if too_high:
        path, narrowest = min(too_high.items(), key=lambda item: min(item[1].shape))
        out, inn = narrowest.shape
        raise LoRAInvalid(f"lora.rank is {ranks[path]}, but {path} is {out}x{inn}: use 1 to {min(out, inn)}.")
