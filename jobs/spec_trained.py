"""The job spec's `lora` and `fine_tuning`: which weights are trained."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from jobs.spec_section import Section, SourceUri


def _is_pattern(pattern: str) -> str:
    """A shell pattern is never wrong; a regular expression may be."""
    if pattern.startswith("re:"):
        try:
            re.compile(pattern.removeprefix("re:"))
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"it is no regular expression: {error}") from None
    return pattern


Pattern = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$"), AfterValidator(_is_pattern)
]


class OverrideSpec(Section):
    """Another rank or alpha for some layers of the adapter."""

    match: Pattern = Field(description="Layers it is for; the first override that matches a layer counts.")
    rank: int | None = Field(default=None, ge=1, le=1280, description="null: the adapter's.")
    alpha: float | None = Field(default=None, gt=0, le=10_000, description="null: the adapter's.")

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.rank is None and self.alpha is None:
            raise ValueError("An override without rank and alpha changes nothing: name one, or leave it out.")
        return self


class TextLoRASpec(Section):
    """An adapter on both text encoders too: they stay on the GPU, and captions are encoded anew in every step."""

    targets: Literal["attention", "transformer"] = Field(
        default="transformer", description="Layers that get one: q, k, v and out; these and the feed-forward ones."
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="Peak learning rate, mostly less than the U-Net's; null: training.optimizer.learning_rate.",
    )


class LoRASpec(Section):
    """The adapter. Trainable parameters at rank 4: qkv 4,474,880, attention 5,806,080, transformer 10,639,360."""

    rank: int = Field(default=4, ge=1, le=1280, description="Rank of the update.")
    alpha: float = Field(
        default=16.0, gt=0, le=10_000, description="The update is scaled by alpha / rank, or as rslora says."
    )
    targets: Literal["none", "qkv", "attention", "transformer", "locon"] = Field(
        default="qkv",
        description="Layers of the U-Net that get one: to_q, to_k, to_v; these and to_out; all linear ones of the "
        "transformers; these and all of the residual blocks, 3x3 convolutions too; none but patterns.",
    )
    patterns: tuple[Pattern, ...] = Field(
        default=(), max_length=32, description='Further layers by module path: "mid_block.*.conv1", "re:.*attn2.*".'
    )
    overrides: tuple[OverrideSpec, ...] = Field(
        default=(), max_length=64, description='Other ranks and alphas: [{match: "*.attn2.*", rank: 8, alpha: 8}].'
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Share of input features dropped in a step.")
    rank_dropout: float = Field(default=0.0, ge=0, lt=1, description="Share of the rank left out for a picture.")
    rslora: bool = Field(default=False, description="Scale by alpha / sqrt(rank).")
    dora: bool = Field(default=False, description="DoRA: train each output's length apart from its direction.")
    text_encoders: TextLoRASpec | None = Field(default=None, description="On both text encoders too; null: off.")
    init_from: SourceUri | None = Field(
        default=None,
        description="LoRA to go on from, a .safetensors file with kohya's names or PEFT's, of the same layers, rank "
        "and alpha: s3://, or file:///; null: an update of zero.",
    )

    @model_validator(mode="after")
    def _has_targets(self) -> Self:
        if self.targets == "none" and not self.patterns and not self.text_encoders:
            raise ValueError(
                "lora.targets is none, lora.patterns is empty and lora.text_encoders off: nothing would be trained."
            )
        return self


class FineTuningSpec(Section):
    """All weights of the U-Net are trained in place of an adapter, and a whole checkpoint comes of it."""

    weights: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="float32: master weights, of which the model computes with roundings, about 47 GiB with adamw; "
        "bfloat16: the model's own, each update rounded stochastically, a third of that with adafactor.",
    )
