"""SDXL's VAE: pictures to latents before training, latents to pictures for samples.

It is diffusers' own, frozen and peripheral. Shapes: b batch, H and W picture pixels, h and w an eighth of them.

Source: Podell et al. 2023, "SDXL" (arXiv:2307.01952), section 2.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.errors import BaseModelInvalid
from worker.model.base_model import BaseModel
from worker.model.weights import load_part

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL


def load_vae(base: BaseModel, device: torch.device | str, dtype: torch.dtype) -> AutoencoderKL:
    """Return the base model's VAE on `device`, frozen.

    Raises:
        ValueError: `dtype` is FP16, in which SDXL's VAE overflows.
        BaseModelInvalid: the weights or the config are not those of SDXL's VAE.
    """
    # Seconds to import, and an attempt that finds all latents in the cache needs none of it.
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    if dtype == torch.float16:
        raise ValueError("SDXL's VAE overflows in FP16 and gives black pictures: load it in BF16 or FP32.")
    config = base.configs["vae"]
    if "scaling_factor" not in config:  # diffusers would silently take Stable Diffusion 1.5's
        raise BaseModelInvalid("The VAE's config has no scaling_factor: use an SDXL base model (0.13025).")
    if config.get("latents_mean") is not None:
        raise BaseModelInvalid(
            "The VAE's config has latents_mean, as Playground's has, not SDXL's: use an SDXL base model."
        )
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(config)
    if not isinstance(vae, AutoencoderKL) or vae.config["latent_channels"] != base.unet_config.latent_channels:
        raise BaseModelInvalid("The VAE's latents do not have as many channels as the U-Net's: use an SDXL base model.")
    load_part(vae, base, "vae", device, dtype)
    return vae


@dataclass(frozen=True)
class Posterior:
    """What the VAE makes of pictures: a normal distribution of latents, scaled to a spread of about 1."""

    mean: Tensor  # [b, 4, h, w]
    spread: Tensor  # [b, 4, h, w], its standard deviation


@torch.no_grad()
def posterior(vae: AutoencoderKL, pixel_values: Tensor) -> Posterior:
    """Return what the VAE makes of pictures.

    Args:
        vae: from `load_vae`.
        pixel_values: [b, 3, H, W], -1..1; H and W divisible by 8.

    Returns:
        In the VAE's dtype. It may hold values that are not finite: the caller knows the pictures' names.
    """
    (encoded,) = vae.encode(pixel_values.to(vae.device, vae.dtype), return_dict=False)  # the VAE's border
    scale = vae.config["scaling_factor"]
    return Posterior(encoded.mode() * scale, encoded.std * scale)


def encode(vae: AutoencoderKL, pixel_values: Tensor) -> Tensor:
    """Return the latents of pictures, the middle of the posterior: [b, 3, H, W] -> [b, 4, h, w]; see `posterior`."""
    return posterior(vae, pixel_values).mean


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Return the pictures of latents: [b, 4, h, w] -> [b, 3, H, W], about -1..1, in the VAE's dtype."""
    latents = latents.to(vae.device, vae.dtype)  # the VAE's border
    return vae.decode(latents / vae.config["scaling_factor"], return_dict=False)[0]  # [b, 3, H, W]
