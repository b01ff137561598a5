"""Sample pictures: Euler's method with classifier-free guidance, through the U-Net that is being trained.

Shapes: h and w of the latents, an eighth of the picture's H and W. Sources: Karras et al. 2022,
https://arxiv.org/abs/2206.00364, algorithm 2 without churn; Ho and Salimans 2022, https://arxiv.org/abs/2207.12598,
equation 6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from worker.data.encoding import TextEmbedding
from worker.model.conditioning import time_ids
from worker.model.schedule import NoiseSchedule
from worker.model.vae import decode
from worker.seeds import generator

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

LATENT_SIDE_PX = 8  # picture pixels a latent


def euler(predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, schedule: NoiseSchedule, steps: int) -> Tensor:
    """Go from noise to latents in `steps` steps, as diffusers' EulerDiscreteScheduler does with SDXL's settings.

    Args:
        predict: (noisy_latents [b, 4, h, w] of about unit variance, timestep []) to the prediction [b, 4, h, w].
        noise: [b, 4, h, w], float32, of unit variance.
        schedule: on the noise's device.
        steps: of the sampler, 1..999.

    Returns:
        latents [b, 4, h, w], float32.
    """
    sigmas = schedule.sigmas(steps)  # [steps + 1], the last is 0
    latents = noise * (sigmas[0] ** 2 + 1) ** 0.5
    for timestep, sigma, next_sigma in zip(schedule.sample_timesteps(steps), sigmas[:-1], sigmas[1:], strict=True):
        prediction = predict(latents / (sigma**2 + 1) ** 0.5, timestep)  # [b, 4, h, w]
        slope = schedule.slope(prediction.float(), latents, sigma)  # the sampler's border: float32
        latents = latents + (next_sigma - sigma) * slope
    return latents


@torch.no_grad()
def sample(
    unet: nn.Module,
    vae: AutoencoderKL,
    prompt: TextEmbedding,
    empty: TextEmbedding,
    side_px: int,
    steps: int,
    guidance: float,
    seed: int,
    schedule: NoiseSchedule,
) -> Image.Image:
    """Draw one square picture.

    Args:
        unet: with the adapter as it is now.
        vae: on `device`.
        prompt: what to draw.
        empty: the embedding of the empty caption, which guidance leads away from.
        side_px: H and W, a multiple of 32.
        steps: of the sampler.
        guidance: prediction = empty + guidance * (prompt - empty).
        seed: of the starting noise; the same seed shows the same picture grow with training.
        schedule: of the base model, on the U-Net's device.
    """
    device = schedule.alphas_cumprod.device
    side = side_px // LATENT_SIDE_PX
    noise = torch.randn((1, 4, side, side), generator=generator("sample", seed)).to(device)  # [1, 4, h, w]
    text_embeds = torch.stack([empty.text_embeds, prompt.text_embeds]).to(device)  # [2, 77, t]
    pooled_text_embeds = torch.stack([empty.pooled_text_embeds, prompt.pooled_text_embeds]).to(device)  # [2, p]
    sizes = [(side_px, side_px)] * 2
    size_ids = time_ids(sizes, [(0, 0)] * 2, sizes, device)  # [2, 6]

    def predict(noisy_latents: Tensor, timestep: Tensor) -> Tensor:
        both = noisy_latents.expand(2, -1, -1, -1)  # [2, 4, h, w]
        predictions = unet(both, timestep.expand(2), text_embeds, pooled_text_embeds, size_ids)  # [2, 4, h, w]
        without, with_prompt = predictions.float().chunk(2)
        return without + guidance * (with_prompt - without)  # [1, 4, h, w]

    latents = euler(predict, noise, schedule, steps)
    return to_image(decode(vae, latents)[0])


def to_image(pixel_values: Tensor) -> Image.Image:
    """[3, H, W], -1..1 and beyond, to an 8-bit picture; NaN becomes black."""
    values = pixel_values.float().nan_to_num(-1.0).clamp(-1, 1)
    bytes_ = ((values + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu()  # [H, W, 3], host sync
    return Image.fromarray(np.asarray(bytes_))
