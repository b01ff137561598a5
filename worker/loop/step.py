"""One micro-step: noise, prediction, loss.

Shapes: b batch, h and w of the latents. Source: Ho et al. 2020, https://arxiv.org/abs/2006.11239, algorithm 1.
"""

import torch
from torch import Tensor, nn

from worker.data.batches import Batch
from worker.loop.config import LossConfig
from worker.loop.loss import elementwise_loss, timestep_weights
from worker.model.schedule import NoiseSchedule
from worker.seeds import generator


def draw_noise(
    shape: torch.Size,
    config: LossConfig,
    seed: int,
    step: int,
    micro_step: int,
    device: torch.device,
    first_sample: int = 0,
) -> tuple[Tensor, Tensor]:
    """Draw noise [b, 4, h, w], float32, and timesteps [b], uniform over those trained, for one place in the training.

    They are drawn on the CPU, so that every device and every resume sees the same, and each sample's apart, so that it
    is the same on whichever of several GPUs it is trained; `first_sample` is the number in the whole batch of the first
    one here. With a noise offset each channel of a picture is shifted by a number of its own
    (https://www.crosslabs.org/blog/diffusion-with-offset-noise), drawn on a stream of its own.
    """
    samples = range(first_sample, first_sample + shape[0])
    sources = [generator("noise", seed, step, micro_step, sample) for sample in samples]
    bounds = (config.min_timestep, config.max_timestep + 1)
    timesteps = torch.cat([torch.randint(*bounds, (1,), generator=source) for source in sources])  # [b]
    noise = torch.stack([torch.randn(shape[1:], generator=source) for source in sources])  # [b, 4, h, w]
    if config.noise_offset:
        sources = [generator("noise offset", seed, step, micro_step, sample) for sample in samples]
        offsets = torch.stack([torch.randn((shape[1], 1, 1), generator=source) for source in sources])  # [b, 4, 1, 1]
        noise += config.noise_offset * offsets
    if device.type != "cuda":
        return noise.to(device), timesteps.to(device)
    return noise.pin_memory().to(device, non_blocking=True), timesteps.pin_memory().to(device, non_blocking=True)


def diffusion_loss(
    unet: nn.Module, schedule: NoiseSchedule, batch: Batch, noise: Tensor, timesteps: Tensor, config: LossConfig
) -> Tensor:
    """The loss of a batch, a float32 scalar: the mean of the pictures' weighted means.

    A picture's weight is that of the batch times that of its timestep.

    Args:
        unet: predicts what `schedule` says.
        schedule: on the batch's device.
        batch: b pictures of one bucket size.
        noise: [b, 4, h, w], float32.
        timesteps: [b].
        config: kind of loss, and weights.
    """
    latents = batch.latents.float()  # the loss's border: noise is added and compared in float32
    noisy_latents = schedule.add_noise(latents, noise, timesteps)  # [b, 4, h, w]
    target = schedule.target(latents, noise, timesteps)  # [b, 4, h, w]
    prediction = unet(noisy_latents, timesteps, batch.text_embeds, batch.pooled_text_embeds, batch.time_ids)
    errors = elementwise_loss(prediction.float(), target, config)  # [b, 4, h, w], float32
    errors = errors.mean(dim=(1, 2, 3)) if batch.masks is None else masked_means(errors, batch.masks)  # [b]
    for weights in (timestep_weights(schedule, timesteps, config), batch.weights):
        errors = errors if weights is None else errors * weights
    return errors.mean()


def masked_means(errors: Tensor, masks: Tensor) -> Tensor:
    """The mean error of each picture over what its mask shows: [b, c, h, w], [b, 1, h, w] -> [b].

    sum(mask * error) / (c * sum(mask)), so that a small subject is learned as fast as one that fills its picture.
    """
    return (errors * masks).sum(dim=(1, 2, 3)) / (errors.shape[1] * masks.sum(dim=(1, 2, 3)))
