"""One micro-step: reproducible noise, and the loss that diffusers' formulas give."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr

from worker.loop.step import diffusion_loss, draw_noise
from worker.model.schedule import NoiseSchedule

CPU = torch.device("cpu")
SHAPE = torch.Size((3, 4, 8, 8))


def test_noise_depends_on_seed_step_micro_step_and_rank_alone() -> None:
    noise, timesteps = draw_noise(SHAPE, 0, 1, 0, CPU)
    torch.manual_seed(99)
    again, timesteps_again = draw_noise(SHAPE, 0, 1, 0, CPU)
    assert torch.equal(noise, again)
    assert torch.equal(timesteps, timesteps_again)
    places = [(1, 1, 0, 0), (0, 2, 0, 0), (0, 1, 1, 0), (0, 1, 0, 1)]
    others = [draw_noise(SHAPE, seed, step, micro, CPU, rank)[0] for seed, step, micro, rank in places]
    draws = [noise, *others]
    assert not any(torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_noise_is_standard_normal_and_timesteps_are_uniform() -> None:
    noise, timesteps = draw_noise(torch.Size((4000, 4, 2, 2)), 0, 1, 0, CPU)
    assert noise.dtype == torch.float32
    assert noise.mean().item() == pytest.approx(0, abs=0.02)  # 5 sigma of 64,000 draws
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert (timesteps.min().item(), timesteps.max().item()) == pytest.approx((0, 999), abs=10)
    assert timesteps.float().mean().item() == pytest.approx(499.5, abs=25)  # 5 sigma


@pytest.mark.parity
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_loss_is_that_of_the_diffusers_script(make_setup: Callable, gamma: float | None) -> None:
    unet, _, batches = make_setup(batch_size=3)
    batch = batches.at(0)
    noise, timesteps = draw_noise(batch.latents.shape, 0, 1, 0, CPU)
    ours = diffusion_loss(unet, NoiseSchedule(), batch, noise, timesteps, gamma)

    # The loss of train_text_to_image_lora_sdxl.py, by diffusers' own schedule and signal-to-noise ratio.
    schedule = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    noisy_latents = schedule.add_noise(batch.latents, noise, timesteps)  # type: ignore[arg-type]
    prediction = unet(noisy_latents, timesteps, batch.text_embeds, batch.pooled_text_embeds, batch.time_ids)
    if gamma is None:
        theirs = F.mse_loss(prediction, noise)
    else:
        snr = compute_snr(schedule, timesteps)
        weights = torch.stack([snr, gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0] / snr
        theirs = (F.mse_loss(prediction, noise, reduction="none").mean(dim=[1, 2, 3]) * weights).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # float32 rounding
    assert ours.dtype == torch.float32


def test_a_pictures_weight_scales_its_loss_alone(make_setup: Callable) -> None:
    unet, _, batches = make_setup(batch_size=2)
    batch, schedule = batches.at(0), NoiseSchedule()
    noise, timesteps = draw_noise(batch.latents.shape, 0, 1, 0, CPU)

    def loss(*weights: float) -> torch.Tensor:
        return diffusion_loss(unet, schedule, replace(batch, weights=torch.tensor(weights)), noise, timesteps)

    assert torch.equal(loss(1.0, 1.0), diffusion_loss(unet, schedule, batch, noise, timesteps))
    torch.testing.assert_close(loss(1.0, 0.25), loss(1.0, 0.0) + loss(0.0, 0.25))  # float32 rounding
    torch.testing.assert_close(loss(0.0, 0.25), loss(0.0, 1.0) / 4)
