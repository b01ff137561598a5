"""The drawing model's U-Net: trained on latents with their captions, to predict the noise.

Shapes: b batch, n pictures, k captions, h and w of the latents, t and p the widths of text_embeds and
pooled_text_embeds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.drawing.model import UNET
from benchmarks.drawing.pictures import SIDE_PX
from benchmarks.drawing.training import Log, State, Trained, train
from worker.model.schedule import TRAIN_TIMESTEPS, NoiseSchedule
from worker.model.unet import UNet

BATCH, LEARNING_RATE = 256, 2e-3
CAPTION_DROPOUT = 0.1  # for guidance: half of these see the empty caption, half zeros, as diffusers' pipeline gives
MIN_SNR_GAMMA = 5.0


@dataclass(frozen=True)
class Captioned:
    """Everything on the device: latents, and for each the row of its caption in the tables."""

    latents: Tensor  # [n, 4, h, w]
    rows: Tensor  # [n]
    text_embeds: Tensor  # [k + 2, 77, t]; the last but one is the empty caption, the last is zeros
    pooled_text_embeds: Tensor  # [k + 2, p]


def train_unet(data: Captioned, steps: int, log: Log, batch: int = BATCH) -> UNet:
    """Return a trained U-Net on the data's device."""
    device = data.latents.device
    unet = UNet(UNET).to(device)
    schedule = NoiseSchedule(device)
    size_ids = torch.tensor([SIDE_PX, SIDE_PX, 0, 0, SIDE_PX, SIDE_PX], device=device).float().expand(batch, 6)

    def loss() -> Tensor:
        chosen = torch.randint(len(data.latents), (batch,), device=device)
        timesteps = torch.randint(TRAIN_TIMESTEPS, (batch,), device=device)
        chance, last = torch.rand(batch, device=device), len(data.text_embeds) - 1
        rows = torch.where(chance < CAPTION_DROPOUT, last - (chance < CAPTION_DROPOUT / 2).long(), data.rows[chosen])
        latents = data.latents[chosen]  # [b, 4, h, w]
        noise = torch.randn_like(latents)
        noisy_latents = schedule.add_noise(latents, noise, timesteps)
        prediction = unet(noisy_latents, timesteps, data.text_embeds[rows], data.pooled_text_embeds[rows], size_ids)
        errors = (prediction.float() - noise).square().mean(dim=(1, 2, 3))  # [b]
        return (errors * schedule.min_snr_weights(timesteps, MIN_SNR_GAMMA)).mean()

    state: State = train(Trained(unet, loss, device), steps, LEARNING_RATE, "U-Net", log)
    unet.load_state_dict(state)
    return unet.requires_grad_(False).eval()
