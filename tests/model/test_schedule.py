"""Properties of the noise schedule that need no reference."""

from itertools import pairwise

import pytest
import torch

from worker.model.schedule import NoiseSchedule

ALL = torch.arange(1000)


def test_noise_keeps_the_variance_of_unit_latents():
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(1000, 4, 8, 8, generator=generator) for _ in range(2))
    noisy_latents = NoiseSchedule().add_noise(latents, noise, ALL)
    # 256 numbers for each timestep: their standard deviation is 1 within 5 times 1 / sqrt(2 * 256).
    assert (noisy_latents.flatten(1).std(dim=1) - 1).abs().max() < 0.22


def test_noise_takes_over_as_time_goes_on():
    schedule = NoiseSchedule()
    assert (schedule.snr(ALL).diff() < 0).all()
    assert schedule.snr(ALL)[0] > 1000
    assert schedule.snr(ALL)[-1] < 0.005


def test_bf16_latents_stay_bf16_and_lose_only_their_last_rounding():
    latents, noise = torch.full((1, 4, 2, 2), 0.75), torch.full((1, 4, 2, 2), -1.5)  # exact in BF16
    timesteps = torch.tensor([999])
    theirs = NoiseSchedule().add_noise(latents, noise, timesteps)
    ours = NoiseSchedule().add_noise(latents.bfloat16(), noise.bfloat16(), timesteps)
    assert torch.equal(ours, theirs.bfloat16())


def test_min_snr_weighs_clean_timesteps_down_and_noisy_ones_not():
    schedule = NoiseSchedule()
    weights, snr = schedule.min_snr_weights(ALL, 5.0), schedule.snr(ALL)
    assert torch.equal(weights[snr <= 5], torch.ones_like(weights[snr <= 5]))
    torch.testing.assert_close(weights[snr > 5], 5 / snr[snr > 5])


@pytest.mark.parametrize("gamma", [0, -1])
def test_a_gamma_that_weighs_nothing_is_refused(gamma: float):
    with pytest.raises(ValueError, match=f"min_snr_gamma is {gamma}"):
        NoiseSchedule().min_snr_weights(ALL, gamma)


@pytest.mark.parametrize("steps", [0, 1000])
def test_an_impossible_number_of_sampling_steps_is_refused(steps: int):
    with pytest.raises(ValueError, match=f"A sampler of {steps} steps"):
        NoiseSchedule().sigmas(steps)


def test_eulers_method_recovers_the_picture_from_a_perfect_prediction():
    """With the true noise as prediction, the sampler must walk from noisy latents straight back to the latents."""
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    sigmas = NoiseSchedule().sigmas(20)
    sample = latents + sigmas[0] * noise
    for sigma, next_sigma in pairwise(sigmas):
        sample = sample + (next_sigma - sigma) * noise
    torch.testing.assert_close(sample, latents, atol=1e-5, rtol=0)  # FP32: twenty roundings of values up to 40


def test_to_moves_the_table_along():
    assert NoiseSchedule().to("meta").alphas_cumprod.device.type == "meta"
