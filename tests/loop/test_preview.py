"""Our sampler steps as diffusers' does, and guidance leads from the empty caption to the prompt."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import Tensor, nn

from worker.data.batches import Example
from worker.data.encoding import TextEmbedding
from worker.loop.preview import euler, sample, to_image
from worker.model.schedule import NoiseSchedule
from worker.model.vae import load_vae
from worker.model.weights import open_base_model

CPU = torch.device("cpu")


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers 0.42 with numpy 2
@pytest.mark.parametrize("steps", [1, 7, 20, 30])
def test_euler_equals_diffusers_step_for_step(steps: int) -> None:
    theirs = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
    theirs.set_timesteps(steps)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    seen_by_theirs: list[tuple[float, Tensor]] = []
    latents = noise * theirs.init_noise_sigma
    for timestep in theirs.timesteps:
        noisy_latents = theirs.scale_model_input(latents, timestep)
        seen_by_theirs.append((timestep.item(), noisy_latents))
        latents = theirs.step(torch.tanh(noisy_latents) + timestep / 1000, timestep, latents).prev_sample  # type: ignore[union-attr]

    seen_by_ours: list[tuple[float, Tensor]] = []

    def predict(noisy_latents: Tensor, timestep: Tensor) -> Tensor:
        seen_by_ours.append((timestep.item(), noisy_latents))
        return torch.tanh(noisy_latents) + timestep / 1000

    ours = euler(predict, noise, NoiseSchedule(), steps)
    assert len(seen_by_ours) == steps
    for (our_timestep, our_input), (their_timestep, their_input) in zip(seen_by_ours, seen_by_theirs, strict=True):
        assert our_timestep == their_timestep
        torch.testing.assert_close(our_input, their_input, rtol=1e-4, atol=1e-5)  # float32; sigma goes up to 13
    torch.testing.assert_close(ours, latents, rtol=1e-4, atol=1e-5)


def test_a_sample_is_reproducible_and_heeds_prompt_and_guidance(
    make_setup: Callable, encoded: tuple[list[Example], TextEmbedding], tiny_base: Path
) -> None:
    unet = make_setup().unet
    vae = load_vae(open_base_model(tiny_base), CPU, torch.float32)
    examples, empty = encoded

    def draw(prompt: TextEmbedding, guidance: float = 5.0, seed: int = 0) -> bytes:
        image = sample(unet, vae, prompt, empty, 64, 3, guidance, seed, NoiseSchedule())
        assert (image.size, image.mode) == ((64, 64), "RGB")
        return image.tobytes()

    cat = draw(examples[3].captions[0])
    assert draw(examples[3].captions[0]) == cat
    assert draw(examples[3].captions[0], seed=1) != cat
    assert draw(examples[3].captions[0], guidance=1.0) != cat
    assert draw(examples[4].captions[0]) != cat
    assert draw(examples[3].captions[0], guidance=0.0) == draw(
        examples[4].captions[0], guidance=0.0
    )  # empty caption alone


def test_guidance_is_the_formula(tiny_base: Path, encoded: tuple[list[Example], TextEmbedding]) -> None:
    """With a U-Net that predicts a constant per caption, the latents tell what was predicted."""
    examples, _ = encoded
    width = examples[0].captions[0].pooled_text_embeds.shape
    empty = TextEmbedding(torch.zeros(77, 4), torch.full(width, 1.0))
    prompt = TextEmbedding(torch.zeros(77, 4), torch.full(width, 3.0))
    seen: list[Tensor] = []

    class Constant(nn.Module):
        def forward(
            self, noisy_latents: Tensor, timesteps: Tensor, text: Tensor, pooled: Tensor, ids: Tensor
        ) -> Tensor:
            seen.append(noisy_latents)
            assert ids.tolist() == [[64, 64, 0, 0, 64, 64]] * 2
            return pooled[:, :1, None, None].expand_as(noisy_latents)

    vae = load_vae(open_base_model(tiny_base), CPU, torch.float32)
    sample(Constant(), vae, prompt, empty, 64, 2, 5.0, 0, NoiseSchedule())
    sigmas = NoiseSchedule().sigmas(2)
    first, second = (x[:1] * (sigma**2 + 1) ** 0.5 for x, sigma in zip(seen, sigmas[:-1], strict=True))
    moved = (second - first) / (sigmas[1] - sigmas[0])
    torch.testing.assert_close(moved, torch.full_like(moved, 1 + 5 * (3 - 1)), rtol=1e-4, atol=1e-4)


def test_pictures_are_clamped_and_nan_is_black() -> None:
    values = torch.tensor([-3.0, -1.0, 0.0, 1.0, 7.0, torch.nan]).expand(3, 1, 6)
    image = to_image(values)
    assert [image.getpixel((x, 0))[0] for x in range(6)] == [0, 0, 128, 255, 255, 0]  # type: ignore[index]
