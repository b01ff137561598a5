"""SDXL's noise schedule: how much noise each timestep adds, how much its loss weighs, and the steps of a sampler.

Shapes: b batch, T timesteps of training, n steps of the sampler.

Sources: Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239), equation 4; Salimans and Ho
2022, "Progressive Distillation" (arXiv:2202.00512), section 4; Lin et al. 2023, "Common Diffusion Noise Schedules and
Sample Steps are Flawed" (arXiv:2305.08891), algorithm 1; Hang et al. 2023, "Efficient Diffusion Training via Min-SNR
Weighting Strategy" (arXiv:2303.09556), section 3.4; Yu et al. 2023, "Unmasking Bias in Diffusion Model Training"
(arXiv:2310.08442), equation 12; Karras et al. 2022, "Elucidating the Design Space" (arXiv:2206.00364), algorithm 1
without churn. The constants are those of scheduler/scheduler_config.json of stable-diffusion-xl-base-1.0.
"""

from typing import Literal, Self

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction"]
"""What the U-Net predicts: the noise, or the velocity sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) latents."""

TRAIN_TIMESTEPS = 1000
BETA_START = 0.00085
BETA_END = 0.012
SAMPLE_STEPS_OFFSET = 1  # `steps_offset` of SDXL's sampler
LEAST_ALPHA_BAR = 2.0**-24
"""Stands for the zero of a zero-terminal schedule where a sampler must divide by it, as in diffusers."""


class NoiseSchedule:
    """The scaled-linear schedule: the square roots of beta rise in equal steps. All tables are FP32.

    Args:
        device: where the table lies.
        prediction: what the U-Net predicts.
        zero_terminal_snr: stretch the schedule so that nothing of the picture is left at the last timestep (Lin et al.
            2023, algorithm 1), as some fine-tunes of SDXL are trained.

    Attributes:
        alphas_cumprod: [T], the share of the picture's variance left at each timestep, falling from 0.999 to 0.0047,
            or to 0.

    Raises:
        ValueError: zero_terminal_snr with "epsilon": where nothing but noise is left, to predict the noise is no task.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        prediction: Prediction = "epsilon",
        zero_terminal_snr: bool = False,
    ) -> None:
        if zero_terminal_snr and prediction == "epsilon":
            raise ValueError("zero_terminal_snr needs a model that predicts v: use prediction v_prediction, or false.")
        self.prediction: Prediction = prediction
        self.zero_terminal_snr = zero_terminal_snr
        # On the CPU whatever the device, so that every machine trains on the same table to the bit.
        betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_TIMESTEPS, dtype=torch.float32) ** 2  # [T]
        alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)  # [T]
        if zero_terminal_snr:
            roots = alphas_cumprod**0.5
            alphas_cumprod = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
        self.alphas_cumprod = alphas_cumprod.to(device)  # [T]

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

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the U-Net should predict, [b, 4, h, w]: the noise, or the velocity (Salimans and Ho 2022).

        Args:
            latents: [b, 4, h, w], FP32.
            noise: [b, 4, h, w], as given to `add_noise`.
            timesteps: [b].
        """
        if self.prediction == "epsilon":
            return noise
        alphas_cumprod = self.alphas_cumprod[timesteps][:, None, None, None]  # [b, 1, 1, 1]
        return alphas_cumprod**0.5 * noise - (1 - alphas_cumprod) ** 0.5 * latents  # [b, 4, h, w]

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return the signal-to-noise ratio, alpha_bar / (1 - alpha_bar): [b] -> [b], FP32."""
        alphas_cumprod = self.alphas_cumprod[timesteps]  # [b]
        return alphas_cumprod / (1 - alphas_cumprod)

    def min_snr_weights(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Return the loss weights: [b] -> [b], 0..1.

        min(snr, gamma) / snr if the noise is predicted, and min(snr, gamma) / (snr + 1) if v is.

        Raises:
            ValueError: `gamma` is not positive, which would weigh every timestep with nothing.
        """
        if gamma <= 0:
            raise ValueError(f"min_snr_gamma is {gamma}: use a positive number, 5 as in the paper, or leave it out.")
        snr = self.snr(timesteps)
        return snr.clamp(max=gamma) / (snr if self.prediction == "epsilon" else snr + 1)  # [b]

    def debiased_weights(self, timesteps: Tensor) -> Tensor:
        """Return the loss weights of debiased estimation (Yu et al. 2023): [b] -> [b].

        1 / sqrt(snr) if the noise is predicted, and 1 / (snr + 1) if v is; the SNR is capped at 1000, as in sd-scripts.
        """
        snr = self.snr(timesteps).clamp(max=1000)
        return snr**-0.5 if self.prediction == "epsilon" else 1 / (snr + 1)  # [b]

    def sample_timesteps(self, steps: int) -> Tensor:
        """Return the timesteps a sampler of `steps` steps visits, falling: [n], int64.

        They are equally spaced from the front ("leading") and shifted by one, as SDXL's scheduler config says. With a
        zero terminal SNR they are spaced from the back ("trailing"), so that the first is the one without signal (Lin
        et al. 2023, section 3.3).

        Raises:
            ValueError: `steps` is not within 1..999.
        """
        if not 1 <= steps < TRAIN_TIMESTEPS:
            raise ValueError(f"A sampler of {steps} steps is not possible: use 1 to {TRAIN_TIMESTEPS - 1}.")
        if self.zero_terminal_snr:
            spaced = torch.arange(steps, 0, -1, dtype=torch.float64, device=self.alphas_cumprod.device)
            return (spaced * TRAIN_TIMESTEPS / steps).round().long() - 1
        spacing = TRAIN_TIMESTEPS // steps
        return torch.arange(steps - 1, -1, -1, device=self.alphas_cumprod.device) * spacing + SAMPLE_STEPS_OFFSET

    def sigmas(self, steps: int) -> Tensor:
        """Return the noise levels between which Euler's method steps: [n + 1], FP32, falling, the last one 0.

        A sampler starts from noise * sqrt(sigmas[0]**2 + 1), gives the U-Net latents / sqrt(sigma**2 + 1), and steps by
        latents += (next_sigma - sigma) * slope(prediction, latents, sigma).
        """
        alphas_cumprod = self.alphas_cumprod[self.sample_timesteps(steps)].clamp(min=LEAST_ALPHA_BAR)  # [n]
        sigmas = ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5  # [n]
        return torch.cat([sigmas, sigmas.new_zeros(1)])  # [n + 1]

    def slope(self, prediction: Tensor, latents: Tensor, sigma: Tensor) -> Tensor:
        """Return d latents / d sigma, by which Euler's method steps, [b, 4, h, w]: the noise that is in the latents.

        Args:
            prediction: [b, 4, h, w], of the U-Net for latents / sqrt(sigma**2 + 1).
            latents: [b, 4, h, w], FP32, signal of unit variance plus sigma times noise.
            sigma: [], above 0.
        """
        if self.prediction == "epsilon":
            return prediction
        return prediction / (sigma**2 + 1) ** 0.5 + latents * sigma / (sigma**2 + 1)
