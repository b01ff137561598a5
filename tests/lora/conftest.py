"""Tiny U-Nets, with and without a trained-looking adapter."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from worker.lora.config import LoRAConfig
from worker.lora.export import save_diffusers, save_kohya
from worker.lora.inject import LoRA, inject
from worker.model.unet import UNet, UNetConfig


def save(lora: LoRA, file: Path, form: str) -> None:
    """Write an adapter as `form` says, kohya or diffusers."""
    if form == "kohya":
        save_kohya(lora, file, {})
    else:
        save_diffusers(lora, file, {})


@pytest.fixture
def make_unet() -> Callable[..., UNet]:
    """Frozen, float32; the same seed gives the same weights."""

    def make(seed: int = 0) -> UNet:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return UNet(UNetConfig.tiny()).requires_grad_(False)

    return make


@pytest.fixture
def make_adapter() -> Callable[..., LoRA]:
    """An adapter on a U-Net whose lora_B is no longer zero, as after training."""

    def make(unet: nn.Module, config: LoRAConfig = LoRAConfig(), seed: int = 0) -> LoRA:  # noqa: B008, frozen
        lora = inject(unet, config, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for layer in lora.modules.values():
                layer.lora_B.normal_(std=0.05, generator=generator)
                if config.dora:
                    magnitude = layer.get_parameter("lora_magnitude")
                    magnitude.mul_(torch.rand(magnitude.shape, generator=generator) + 0.5)
        return lora

    return make


@pytest.fixture
def unet_inputs() -> tuple[Tensor, ...]:
    """noisy_latents, timesteps, text_embeds, pooled_text_embeds, time_ids for the tiny U-Net, batch 2."""
    generator = torch.Generator().manual_seed(5)
    config = UNetConfig.tiny()
    return (
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.tensor([17, 804]),
        torch.randn(2, 77, config.text_embed_dim, generator=generator),
        torch.randn(2, config.pooled_text_embed_dim, generator=generator),
        torch.tensor([[64.0, 64, 0, 0, 64, 64], [80, 48, 4, 0, 64, 64]]),
    )
