"""Our noise schedule against diffusers' DDPMScheduler and EulerDiscreteScheduler, with SDXL's settings."""

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from worker.model.schedule import NoiseSchedule

pytestmark = [
    pytest.mark.parity,
    # diffusers hands torch tensors to NumPy 2 in the old way.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

SETTINGS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
ALL = torch.arange(1000)


def test_tables_are_equal_to_the_bit():
    assert torch.equal(NoiseSchedule().alphas_cumprod, DDPMScheduler(**SETTINGS).alphas_cumprod)


def test_noise_is_added_alike_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(1000, 4, 4, 4, generator=generator) for _ in range(2))
    ours = NoiseSchedule().add_noise(latents, noise, ALL)
    assert torch.equal(ours, DDPMScheduler(**SETTINGS).add_noise(latents, noise, ALL))


def test_snr_is_equal():
    # Theirs squares a rounded root: a relative error of a few times 2**-24.
    torch.testing.assert_close(NoiseSchedule().snr(ALL), compute_snr(DDPMScheduler(**SETTINGS), ALL), rtol=1e-6, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 30, 50, 999])
def test_the_sampler_visits_the_same_timesteps_and_noise_levels(steps: int):
    theirs = EulerDiscreteScheduler(**SETTINGS, timestep_spacing="leading", steps_offset=1)
    theirs.set_timesteps(steps)
    schedule = NoiseSchedule()
    assert schedule.sample_timesteps(steps).tolist() == theirs.timesteps.tolist()
    # Theirs interpolates in FP64 and rounds once: a relative error of a few times 2**-24.
    torch.testing.assert_close(schedule.sigmas(steps), theirs.sigmas, rtol=1e-6, atol=0)


def test_a_whole_sampling_run_ends_alike():
    """With a stand-in for the U-Net: any function of the scaled latents and the timestep will do."""
    theirs, steps = EulerDiscreteScheduler(**SETTINGS, timestep_spacing="leading", steps_offset=1), 12
    theirs.set_timesteps(steps)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.tanh(latents * (1 + timestep / 1000))

    reference = noise * theirs.init_noise_sigma
    for timestep in theirs.timesteps:
        prediction = predict(theirs.scale_model_input(reference, timestep), timestep)
        reference = theirs.step(prediction, timestep, reference).prev_sample

    schedule = NoiseSchedule()
    sigmas = schedule.sigmas(steps)
    latents = noise * (sigmas[0] ** 2 + 1) ** 0.5
    for i, timestep in enumerate(schedule.sample_timesteps(steps)):
        prediction = predict(latents / (sigmas[i] ** 2 + 1) ** 0.5, timestep)
        latents = latents + (sigmas[i + 1] - sigmas[i]) * prediction
    torch.testing.assert_close(latents, reference, rtol=0, atol=2e-5)  # FP32 roundings of values up to 15, 12 steps
