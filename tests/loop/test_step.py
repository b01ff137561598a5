"""One micro-step: reproducible noise, and the loss that diffusers' formulas give."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr

from worker.loop.config import LossConfig
from worker.loop.loss import elementwise_loss, noise_schedule
from worker.loop.step import diffusion_loss, draw_noise, masked_means

CPU = torch.device("cpu")
SHAPE = torch.Size((3, 4, 8, 8))


def test_noise_depends_on_seed_step_micro_step_and_sample_alone() -> None:
    noise, timesteps = draw_noise(SHAPE, LossConfig(), 0, 1, 0, CPU)
    torch.manual_seed(99)
    again, timesteps_again = draw_noise(SHAPE, LossConfig(), 0, 1, 0, CPU)
    assert torch.equal(noise, again)
    assert torch.equal(timesteps, timesteps_again)
    places = [(1, 1, 0, 0), (0, 2, 0, 0), (0, 1, 1, 0), (0, 1, 0, 3)]
    others = [draw_noise(SHAPE, LossConfig(), seed, step, micro, CPU, first)[0] for seed, step, micro, first in places]
    draws = [each for batch in (noise, *others) for each in batch]
    assert not any(torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_a_sample_s_noise_is_the_same_in_whichever_part_of_the_batch_it_is_drawn() -> None:
    shifted, one = LossConfig(noise_offset=0.1), torch.Size((1, *SHAPE[1:]))
    noise, timesteps = draw_noise(SHAPE, shifted, 0, 1, 0, CPU)
    parts = [draw_noise(one, shifted, 0, 1, 0, CPU, first_sample=n) for n in range(SHAPE[0])]
    assert torch.equal(torch.cat([part[0] for part in parts]), noise)
    assert torch.equal(torch.cat([part[1] for part in parts]), timesteps)


def test_noise_is_standard_normal_and_timesteps_are_uniform() -> None:
    noise, timesteps = draw_noise(torch.Size((4000, 4, 2, 2)), LossConfig(), 0, 1, 0, CPU)
    assert noise.dtype == torch.float32
    assert noise.mean().item() == pytest.approx(0, abs=0.02)  # 5 sigma of 64,000 draws
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert (timesteps.min().item(), timesteps.max().item()) == pytest.approx((0, 999), abs=10)
    assert timesteps.float().mean().item() == pytest.approx(499.5, abs=25)  # 5 sigma


def test_timesteps_keep_within_their_bounds() -> None:
    config = LossConfig(min_timestep=200, max_timestep=203)
    _, timesteps = draw_noise(torch.Size((400, 4, 1, 1)), config, 0, 1, 0, CPU)
    assert sorted(set(timesteps.tolist())) == [200, 201, 202, 203]


def test_a_noise_offset_shifts_whole_channels_and_nothing_else() -> None:
    shape = torch.Size((2000, 4, 2, 2))
    plain, timesteps = draw_noise(shape, LossConfig(), 0, 1, 0, CPU)
    shifted, timesteps_too = draw_noise(shape, LossConfig(noise_offset=0.1), 0, 1, 0, CPU)
    assert torch.equal(timesteps, timesteps_too)
    shift = shifted - plain
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand(shape), rtol=0, atol=1e-6)  # rounding of the sum
    assert shift[:, :, 0, 0].std().item() == pytest.approx(0.1, abs=0.005)  # 6 sigma of 8,000 draws


def test_huber_is_the_square_near_zero_and_a_line_far_off() -> None:
    config = LossConfig(kind="huber", huber_c=0.1)
    errors = torch.tensor([1e-3, 10.0, 11.0], dtype=torch.float64)
    near, far, farther = elementwise_loss(errors, torch.zeros(3, dtype=torch.float64), config).tolist()
    assert near == pytest.approx(1e-6, rel=1e-3)
    assert farther - far == pytest.approx(2 * 0.1, rel=1e-3)


@pytest.mark.parity
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_loss_is_that_of_the_diffusers_script(
    make_setup: Callable, gamma: float | None, prediction: Literal["epsilon", "v_prediction"]
) -> None:
    config = LossConfig(prediction=prediction, min_snr_gamma=gamma)
    unet, _, batches = make_setup(batch_size=3)
    batch = batches.at(0)
    noise, timesteps = draw_noise(batch.latents.shape, config, 0, 1, 0, CPU)
    ours = diffusion_loss(unet, noise_schedule(config, CPU), batch, noise, timesteps, config)

    # The loss of train_text_to_image_lora_sdxl.py, by diffusers' own schedule and signal-to-noise ratio.
    schedule = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", prediction_type=prediction)
    noisy_latents = schedule.add_noise(batch.latents, noise, timesteps)  # type: ignore[arg-type]
    target = noise if prediction == "epsilon" else schedule.get_velocity(batch.latents, noise, timesteps)  # type: ignore[arg-type]
    output = unet(noisy_latents, timesteps, batch.text_embeds, batch.pooled_text_embeds, batch.time_ids)
    if gamma is None:
        theirs = F.mse_loss(output, target)
    else:
        snr = compute_snr(schedule, timesteps)
        weights = torch.stack([snr, gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
        weights = weights / (snr if prediction == "epsilon" else snr + 1)
        theirs = (F.mse_loss(output, target, reduction="none").mean(dim=[1, 2, 3]) * weights).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # float32 rounding
    assert ours.dtype == torch.float32


def test_a_pictures_weight_scales_its_loss_alone(make_setup: Callable) -> None:
    unet, _, batches = make_setup(batch_size=2)
    batch, config = batches.at(0), LossConfig()
    schedule = noise_schedule(config, CPU)
    noise, timesteps = draw_noise(batch.latents.shape, config, 0, 1, 0, CPU)

    def loss(*weights: float) -> torch.Tensor:
        return diffusion_loss(unet, schedule, replace(batch, weights=torch.tensor(weights)), noise, timesteps, config)

    assert torch.equal(loss(1.0, 1.0), diffusion_loss(unet, schedule, batch, noise, timesteps, config))
    torch.testing.assert_close(loss(1.0, 0.25), loss(1.0, 0.0) + loss(0.0, 0.25))  # float32 rounding
    torch.testing.assert_close(loss(0.0, 0.25), loss(0.0, 1.0) / 4)


@pytest.mark.parity
def test_zero_terminal_snr_is_that_of_diffusers() -> None:
    schedule = noise_schedule(LossConfig(prediction="v_prediction", zero_terminal_snr=True), CPU)
    theirs = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", rescale_betas_zero_snr=True).alphas_cumprod
    assert schedule.alphas_cumprod[-1] == 0
    # Theirs goes by way of the betas and back: a few roundings of numbers up to 1.
    torch.testing.assert_close(schedule.alphas_cumprod, theirs, rtol=0, atol=5e-7)
    assert schedule.min_snr_weights(torch.tensor([999]), 5.0).isfinite().all()
    assert schedule.debiased_weights(torch.tensor([999])).isfinite().all()


def test_zero_terminal_snr_wants_v_prediction() -> None:
    with pytest.raises(ValueError, match="use prediction v_prediction"):
        noise_schedule(LossConfig(zero_terminal_snr=True), CPU)


def test_debiased_estimation_weighs_by_the_root_of_the_snr() -> None:
    timesteps = torch.arange(1000)
    ours = noise_schedule(LossConfig(), CPU)
    snr = ours.snr(timesteps).clamp(max=1000)
    torch.testing.assert_close(ours.debiased_weights(timesteps), 1 / snr.sqrt())
    v = noise_schedule(LossConfig(prediction="v_prediction"), CPU)
    torch.testing.assert_close(v.debiased_weights(timesteps), 1 / (snr + 1))


def test_a_masked_loss_is_the_mean_over_what_the_mask_shows(make_setup: Callable) -> None:
    unet, _, batches = make_setup(batch_size=2)
    batch, config = batches.at(0), LossConfig()
    schedule = noise_schedule(config, CPU)
    noise, timesteps = draw_noise(batch.latents.shape, config, 0, 1, 0, CPU)
    b, _, h, w = batch.latents.shape
    masks = torch.zeros(b, 1, h, w)
    masks[0, :, :2, :3] = 1
    masks[1] = torch.rand(1, h, w, generator=torch.Generator().manual_seed(0))
    ours = diffusion_loss(unet, schedule, replace(batch, masks=masks), noise, timesteps, config)

    noisy_latents = schedule.add_noise(batch.latents, noise, timesteps)
    prediction = unet(noisy_latents, timesteps, batch.text_embeds, batch.pooled_text_embeds, batch.time_ids)
    errors = (prediction - noise) ** 2
    first = errors[0, :, :2, :3].mean()
    second = (errors[1] * masks[1]).sum() / (4 * masks[1].sum())
    torch.testing.assert_close(ours, (first + second) / 2)  # float32 rounding

    plain = diffusion_loss(unet, schedule, batch, noise, timesteps, config)
    ones = diffusion_loss(unet, schedule, replace(batch, masks=torch.ones(b, 1, h, w)), noise, timesteps, config)
    torch.testing.assert_close(ones, plain)


def test_what_a_mask_hides_has_no_gradient() -> None:
    errors = torch.rand(1, 4, 6, 6, requires_grad=True)
    masks = torch.zeros(1, 1, 6, 6)
    masks[..., :2, :] = 1
    masked_means(errors, masks).sum().backward()
    assert errors.grad is not None
    assert errors.grad[..., 2:, :].count_nonzero() == 0
    assert (errors.grad[..., :2, :] == 1 / (4 * 12)).all()
