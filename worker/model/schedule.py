"""SDXL's noise schedule: how much noise each timestep adds, how much its loss weighs, and the steps of a sampler.

Shapes: b batch, T timesteps of training, n steps of the sampler.

Sources: Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239), equation 4; Hang et al. 2023,
"Efficient Diffusion Training via Min-SNR Weighting Strategy" (arXiv:2303.09556), section 3.4; Karras et al. 2022,
"Elucidating the Design Space" (arXiv:2206.00364), algorithm 1 without churn. The constants are those of
scheduler/scheduler_config.json of stable-diffusion-xl-base-1.0.
"""

from typing import Self

import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000
BETA_START = 0.00085
BETA_END = 0.012
SAMPLE_STEPS_OFFSET = 1  # `steps_offset` of SDXL's sampler


class NoiseSchedule:
    """The scaled-linear schedule: the square roots of beta rise in equal steps. All tables are FP32.

    Attributes:
        alphas_cumprod: [T], the share of the picture's variance left at each timestep, falling from 0.999 to 0.0047.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        # On the CPU whatever the device, so that every machine trains on the same table to the bit.
        betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_TIMESTEPS, dtype=torch.float32) ** 2  # [T]
        self.alphas_cumprod = torch.cumprod(1.0 - betas, dim=0).to(device)  # [T]

    def to(self, device: torch.device | str) -> Self:
        """Move the table, so that a step looks it up without leaving the device."""
        self.alphas_cumprod = self.alphas_cumprod.to(device)
        return self

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return sqrt(alpha_bar) latents + sqrt(1 - alpha_bar) noise (Ho et al. 2020, equation 4).

        Args:
            latents: [b, 4, h, w].
            noise: [b, 4, h, w], standard normal.
            timesteps: [b], 0..999, on the schedule's device.

        Returns:
            noisy_latents [b, 4, h, w], in the latents' dtype; the sum itself is made in FP32.
        """
        alphas_cumprod = self.alphas_cumprod[timesteps][:, None, None, None]  # [b, 1, 1, 1]
        noisy_latents = alphas_cumprod**0.5 * latents + (1 - alphas_cumprod) ** 0.5 * noise  # [b, 4, h, w]
        return noisy_latents.to(latents.dtype)  # the caller's dtype: BF16 tables would be off by up to 0.4 %

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return the signal-to-noise ratio, alpha_bar / (1 - alpha_bar): [b] -> [b], FP32."""
        alphas_cumprod = self.alphas_cumprod[timesteps]  # [b]
        return alphas_cumprod / (1 - alphas_cumprod)

    def min_snr_weights(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Return the loss weights min(snr, gamma) / snr of a noise-predicting model: [b] -> [b], 0..1.

        Raises:
            ValueError: `gamma` is not positive, which would weigh every timestep with nothing.
        """
        if gamma <= 0:
            raise ValueError(f"min_snr_gamma is {gamma}: use a positive number, 5 as in the paper, or leave it out.")
        snr = self.snr(timesteps)
        return snr.clamp(max=gamma) / snr  # [b]

    def sample_timesteps(self, steps: int) -> Tensor:
        """Return the timesteps a sampler of `steps` steps visits, falling: [n], int64.

        They are equally spaced from the front ("leading") and shifted by one, as SDXL's scheduler config says.

        Raises:
            ValueError: `steps` is not within 1..999.
        """
        if not 1 <= steps < TRAIN_TIMESTEPS:
            raise ValueError(f"A sampler of {steps} steps is not possible: use 1 to {TRAIN_TIMESTEPS - 1}.")
        spacing = TRAIN_TIMESTEPS // steps
        return torch.arange(steps - 1, -1, -1, device=self.alphas_cumprod.device) * spacing + SAMPLE_STEPS_OFFSET

    def sigmas(self, steps: int) -> Tensor:
        """Return the noise levels between which Euler's method steps: [n + 1], FP32, falling, the last one 0.

        A sampler starts from noise * sqrt(sigmas[0]**2 + 1), gives the U-Net latents / sqrt(sigma**2 + 1), and steps by
        latents += (next_sigma - sigma) * prediction.
        """
        sigmas = self.snr(self.sample_timesteps(steps)) ** -0.5  # [n]
        return torch.cat([sigmas, sigmas.new_zeros(1)])  # [n + 1]
