"""The loss of pictures that are not trained, at fixed noise and timesteps: it moves with the weights alone.

A step's loss swings with the timestep that it drew, far more than training changes it. Here each held-out picture is
noised in the same TIMESTEPS ways each time, in every job that holds it out whatever its seed: one figure compares with
the next. It is weighed as the training's loss is, so that the two curves can be compared.

Nothing that training draws from is touched, and no weight is: with and without it, a training is the same to the bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from worker.data.batches import Batch, Example
from worker.loop.config import LossConfig
from worker.loop.loss import noise_schedule
from worker.loop.step import diffusion_loss
from worker.seeds import generator

TIMESTEPS = 8


@dataclass(frozen=True)
class ValidationResult:
    step: int  # 0 before the first
    validation_loss: float  # mean over pictures and timesteps
    by_timestep: dict[int, float]  # timestep to mean over pictures
    weights: Literal["last", "ema"]  # of the adapter: as they are, or their running average


class Validation:
    """What is measured, and when.

    Args:
        examples: the pictures held out, encoded.
        digests: SHA-256 of each, of which its noise is made.
        every_n_steps: None means only before the first step and after the last.
        config: of the training's loss.
    """

    def __init__(
        self, examples: Sequence[Example], digests: Sequence[str], every_n_steps: int | None, config: LossConfig
    ) -> None:
        self._pictures = list(zip(examples, digests, strict=True))
        self._every_n_steps = every_n_steps
        self._config = config
        self.timesteps = fixed_timesteps(config)

    def due(self, step: int, steps: int) -> bool:
        """Whether the loss is wanted after `step` of `steps`."""
        return step in (0, steps) or (self._every_n_steps is not None and step % self._every_n_steps == 0)

    @torch.no_grad()
    def losses(self, unet: nn.Module, device: torch.device, stop_requested: Callable[[], bool]) -> Tensor | None:
        """The loss of each picture at each timestep, [n, TIMESTEPS], float32 on the CPU.

        Picture by picture and timestep by timestep, so that one takes no more memory than a step does.

        Args:
            unet: as it is.
            device: the U-Net's.
            stop_requested: asked before each picture; then the answer is None.
        """
        schedule = noise_schedule(self._config, device)
        rows: list[Tensor] = []
        for example, digest in self._pictures:
            if stop_requested():
                return None
            batch = _batch_of_one(example).to(device)
            row = [
                diffusion_loss(
                    unet,
                    schedule,
                    batch,
                    self._noise(batch.latents.shape, digest, timestep).to(device),
                    torch.tensor([timestep], device=device),
                    self._config,
                )
                for timestep in self.timesteps
            ]
            rows.append(torch.stack(row))
        return torch.stack(rows).cpu()  # host sync

    def _noise(self, shape: torch.Size, digest: str, timestep: int) -> Tensor:
        """[1, 4, h, w], float32, with the noise offset if there is one."""
        source = generator(f"validation {digest}", timestep)
        noise = torch.randn(shape, generator=source)
        return noise + self._config.noise_offset * torch.randn((*shape[:2], 1, 1), generator=source)


def validation_result(step: int, losses: Tensor, timesteps: Sequence[int], ema: bool) -> ValidationResult:
    """Means of `losses` [n, t]."""
    by_timestep = dict(zip(timesteps, losses.mean(dim=0).tolist(), strict=True))
    return ValidationResult(step, losses.mean().item(), by_timestep, "ema" if ema else "last")


def fixed_timesteps(config: LossConfig) -> list[int]:
    """The middles of TIMESTEPS equal parts of those that are trained."""
    least, count = config.min_timestep, config.max_timestep + 1 - config.min_timestep
    return [least + (2 * k + 1) * count // (2 * TIMESTEPS) for k in range(TIMESTEPS)]


def _batch_of_one(example: Example) -> Batch:
    view, caption = example.view, example.captions[0]
    return Batch(
        view.latents[None],
        caption.text_embeds[None],
        caption.pooled_text_embeds[None],
        view.time_ids[None],
        masks=None if view.mask is None else view.mask[None],
    )
