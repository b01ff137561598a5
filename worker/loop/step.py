"""One micro-step: noise, prediction, loss.

Shapes: b batch, h and w of the latents. Source: Ho et al. 2020, https://arxiv.org/abs/2006.11239, equation 14; weights
after Hang et al. 2023, https://arxiv.org/abs/2303.09556.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.data.batches import Batch
from worker.model.schedule import TRAIN_TIMESTEPS, NoiseSchedule
from worker.seeds import generator


def draw_noise(
    shape: torch.Size, seed: int, step: int, micro_step: int, device: torch.device, rank: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw noise [b, 4, h, w], float32, and timesteps [b], uniform over 0..999, for one place in the training.

    They are drawn on the CPU, so that every device and every resume sees the same; `rank` tells several GPUs apart.
    """
    source = generator("noise", seed, step, micro_step, rank)
    timesteps = torch.randint(TRAIN_TIMESTEPS, shape[:1], generator=source)  # [b]
    noise = torch.randn(shape, generator=source)  # [b, 4, h, w]
    if device.type != "cuda":
        return noise.to(device), timesteps.to(device)
    return noise.pin_memory().to(device, non_blocking=True), timesteps.pin_memory().to(device, non_blocking=True)


def diffusion_loss(
    unet: nn.Module,
    schedule: NoiseSchedule,
    batch: Batch,
    noise: Tensor,
    timesteps: Tensor,
    min_snr_gamma: float | None = None,
) -> Tensor:
    """Mean squared error between noise and prediction, a float32 scalar: the mean of the pictures' weighted means.

    A picture's weight is that of the batch times that of min-SNR.

    Args:
        unet: predicts the noise.
        schedule: on the batch's device.
        batch: b pictures of one bucket size.
        noise: [b, 4, h, w], float32.
        timesteps: [b].
        min_snr_gamma: a picture's weight is min(snr, gamma) / snr; None weighs all alike.
    """
    latents = batch.latents.float()  # the loss's border: noise is added and compared in float32
    noisy_latents = schedule.add_noise(latents, noise, timesteps)  # [b, 4, h, w]
    prediction = unet(noisy_latents, timesteps, batch.text_embeds, batch.pooled_text_embeds, batch.time_ids)
    errors = F.mse_loss(prediction.float(), noise, reduction="none").mean(dim=(1, 2, 3))  # [b], float32
    if min_snr_gamma is not None:
        errors = errors * schedule.min_snr_weights(timesteps, min_snr_gamma)
    if batch.weights is not None:
        errors = errors * batch.weights
    return errors.mean()
