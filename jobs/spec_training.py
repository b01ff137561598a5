"""The job spec's `training`: how long, by which optimizer, and what an error costs."""

from typing import Literal, Self

from pydantic import Field, model_validator

from jobs.spec_section import Section


class OptimizerSpec(Section):
    """How the adapter's weights move."""

    name: Literal["adamw", "adamw8bit", "adafactor", "prodigy", "lion", "schedule_free_adamw"] = Field(
        default="adamw",
        description="On FP32 master weights. prodigy finds its own step size: give it learning_rate 1.0; lion wants a "
        "third to a tenth of AdamW's; schedule_free_adamw wants lr_schedule constant.",
    )
    learning_rate: float = Field(default=1e-4, gt=0, le=10, description="Peak learning rate.")
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="Decoupled weight decay.")


class LRScheduleSpec(Section):
    """How the learning rate goes on."""

    name: Literal["constant", "linear", "cosine", "cosine_with_restarts"] = Field(
        default="cosine",
        description="After the warm-up: stay, or fall to 0 in a line or a cosine, with restarts once in each cycle.",
    )
    warmup_steps: int = Field(default=0, ge=0, le=100_000, description="Steps of linear rise at the start.")
    cycles: int = Field(
        default=1, ge=1, le=1000, description="Of cosine_with_restarts: equal parts, each from the peak."
    )


class EMASpec(Section):
    """A running mean of the adapter's weights, saved beside them."""

    decay: float = Field(default=0.999, gt=0, lt=1, description="Share of the old mean kept each step.")
    device: Literal["training", "cpu"] = Field(
        default="training", description="Where it lies: beside the adapter, or in host memory."
    )


class LossSpec(Section):
    """How an error is counted."""

    name: Literal["mse", "huber"] = Field(
        default="mse", description="Squared error, or pseudo-Huber, which forgives a few wrong pictures."
    )
    huber_c: float = Field(
        default=0.1, gt=0, le=100, description="Of huber: errors beyond it count in a line, not squared."
    )


class TimestepSpec(Section):
    """Which timesteps are trained: low ones are details, high ones composition."""

    min: int = Field(default=0, ge=0, le=999, description="The least.")
    max: int = Field(default=999, ge=0, le=999, description="The greatest.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, but max is {self.max}: use a min of at most max.")
        return self


class ValidationSpec(Section):
    """Pictures held out of training, by whose loss one sees when it learns its pictures by heart."""

    pictures: int | None = Field(default=None, ge=1, le=128, description="How many are held out; null: share says it.")
    share: float | None = Field(
        default=None, gt=0, le=0.5, description="Which share of the pictures is held out, at least 1, at most 128."
    )
    every_n_steps: int | None = Field(
        default=100, ge=1, le=1_000_000, description="How often, besides before and after; null: only these."
    )

    @model_validator(mode="after")
    def _says_how_many(self) -> Self:
        if (self.pictures is None) is (self.share is None):
            raise ValueError("say how many pictures are held out: pictures, or share, but not both.")
        return self


class TrainingSpec(Section):
    """How long and how it is trained."""

    resolution: int = Field(
        default=1024, ge=64, le=2048, multiple_of=32, description="Side of the square whose area all have, px."
    )
    batch_size: int = Field(default=1, ge=1, le=256, description="Pictures a micro-step, on each GPU.")
    gradient_accumulation: int = Field(default=1, ge=1, le=1024, description="Micro-steps a step.")
    steps: int = Field(default=1500, ge=1, le=1_000_000, description="Optimizer steps.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Decides adapter, order, noise, timesteps and dropout.")
    optimizer: OptimizerSpec = OptimizerSpec()
    lr_schedule: LRScheduleSpec = LRScheduleSpec()
    max_grad_norm: float | None = Field(
        default=1.0, gt=0, le=1000, description="Gradients are clipped to this norm; null: off."
    )
    min_snr_gamma: float | None = Field(
        default=None, gt=0, le=100, description="Min-SNR loss weighting, 5 is usual; null: off."
    )
    debiased_estimation: bool = Field(
        default=False, description="Debiased-estimation loss weighting instead of min_snr_gamma."
    )
    loss: LossSpec = LossSpec()
    noise_offset: float = Field(
        default=0.0, ge=0, le=1, description="Noise added to each channel as a whole, 0.03 to 0.1 is usual; 0: off."
    )
    timesteps: TimestepSpec = TimestepSpec()
    prediction: Literal["epsilon", "v_prediction"] | None = Field(
        default=None, description="What the base model predicts; null: what it says of itself, else epsilon."
    )
    zero_terminal_snr: bool | None = Field(
        default=None,
        description="Whether the base model was trained to start from pure noise; null: what it says of itself.",
    )
    ema: EMASpec | None = Field(default=None, description="Mean of the adapter's weights; null: off.")
    validation: ValidationSpec | None = Field(
        default=None, description="Loss of pictures that are not trained, at fixed noise and timesteps; null: off."
    )

    @model_validator(mode="after")
    def _zero_terminal_snr_predicts_v(self) -> Self:
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError(
                "zero_terminal_snr is true, but prediction is epsilon: use v_prediction, or leave both out."
            )
        return self

    @model_validator(mode="after")
    def _one_weighting(self) -> Self:
        if self.debiased_estimation and self.min_snr_gamma is not None:
            raise ValueError("debiased_estimation and min_snr_gamma replace each other's weights: use one of the two.")
        return self

    @model_validator(mode="after")
    def _schedule_free(self) -> Self:
        if self.optimizer.name == "schedule_free_adamw" and self.lr_schedule.name != "constant":
            raise ValueError(
                f"optimizer.name is schedule_free_adamw, and lr_schedule.name {self.lr_schedule.name}: use constant."
            )
        return self

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.lr_schedule.warmup_steps >= self.steps:
            raise ValueError(
                f"lr_schedule.warmup_steps is {self.lr_schedule.warmup_steps}, but there are {self.steps} steps: "
                f"use at most {self.steps - 1}."
            )
        return self
