"""Our noise schedule against diffusers' DDPMScheduler and EulerDiscreteScheduler, with SDXL's settings."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from worker.loop.preview import euler
from worker.model.schedule import NoiseSchedule

pytestmark = [
    pytest.mark.parity,
    # diffusers hands torch tensors to NumPy 2 in the old way.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

SETTINGS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
ZERO_TERMINAL = {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
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


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50])
def test_with_a_zero_terminal_snr_the_sampler_starts_where_nothing_is_left(steps: int):
    theirs = EulerDiscreteScheduler(**SETTINGS, **ZERO_TERMINAL)
    theirs.set_timesteps(steps)
    schedule = NoiseSchedule("cpu", "v_prediction", zero_terminal_snr=True)
    assert schedule.sample_timesteps(steps).tolist() == theirs.timesteps.tolist()
    # Theirs goes by way of the betas and back: relative errors of 1e-6 where little is left of the picture.
    torch.testing.assert_close(schedule.sigmas(steps), theirs.sigmas, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (NoiseSchedule(), {"timestep_spacing": "leading", "steps_offset": 1}),
        (
            NoiseSchedule("cpu", "v_prediction"),
            {"timestep_spacing": "leading", "steps_offset": 1, "prediction_type": "v_prediction"},
        ),
        (NoiseSchedule("cpu", "v_prediction", zero_terminal_snr=True), ZERO_TERMINAL),
    ],
    ids=["epsilon", "v_prediction", "zero_terminal_snr"],
)
def test_our_sampler_is_theirs_step_for_step(ours: NoiseSchedule, theirs: dict[str, Any]):
    """With a stand-in for the U-Net: any function of the scaled latents and the timestep will do."""
    scheduler, steps = EulerDiscreteScheduler(**SETTINGS, **theirs), 12
    scheduler.set_timesteps(steps)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.tanh(latents * (1 + timestep / 1000))

    reference, seen_by_theirs = noise * scheduler.init_noise_sigma, []
    for timestep in scheduler.timesteps:
        seen_by_theirs.append(scheduler.scale_model_input(reference, timestep))
        reference = scheduler.step(predict(seen_by_theirs[-1], timestep), timestep, reference).prev_sample

    seen_by_ours: list[torch.Tensor] = []

    def predict_and_note(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen_by_ours.append(latents)
        return predict(latents, timestep)

    latents = euler(predict_and_note, noise, ours, steps)

    for mine, other in zip([*seen_by_ours, latents], [*seen_by_theirs, reference], strict=True):
        # FP32 roundings of values up to 15 in 12 steps; with a zero terminal SNR the first value is up to 4096 times 4.
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=2e-3 if ours.zero_terminal_snr else 2e-5)
