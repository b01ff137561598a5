"""The job spec, version 1: what a user asks for, checked field by field.

Frozen, unknown keys refused, every field bounded and described: docs/job-spec.md and the JSON Schema in
jobs/job-spec.v1.schema.json are generated from this file. A field whose work loraq does not carry out yet is refused
by jobs/not_yet.py, never ignored.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    field_validator,
    model_validator,
)

from jobs.presets import PRESETS, PresetName, fill
from jobs.shards import is_sharded, shards


class Section(BaseModel):
    """A part of the spec: frozen, and with no room for a misspelt key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _default(section: Section, name: str) -> object:
    return type(section).model_fields[name].default


# Control characters would forge log lines, and no name needs them.
Text = Annotated[str, StringConstraints(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
S3Uri = Annotated[
    str, StringConstraints(max_length=1100, pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\x00-\x1f\x7f]*)?$")
]
SourceUri = Annotated[str, StringConstraints(max_length=1100, pattern=r"^(s3|hf|file)://[^\x00-\x1f\x7f]+$")]


Subfolder = Annotated[str, StringConstraints(max_length=1000, pattern=r"^[^/\x00-\x1f\x7f]+(/[^/\x00-\x1f\x7f]+)*$")]
Repeats = Annotated[int, Field(ge=1, le=1000)]


class CaptionSpec(Section):
    """How captions are read."""

    missing: Literal["error", "empty", "filename"] = Field(
        default="error", description="A picture without caption: an error, no caption, or its file name."
    )
    dropout: float = Field(default=0.0, ge=0, le=1, description="Share of pictures trained without caption in a step.")
    shuffle_tags: bool = Field(
        default=False,
        description="Comma-separated tags in another order each time: one of shuffle_orders, drawn for each sample.",
    )
    keep_tokens: int = Field(
        default=1, ge=0, le=75, description="Tags at the front that shuffle_tags leaves in place; the trigger's stay."
    )
    shuffle_orders: int = Field(
        default=8, ge=2, le=64, description="Orders of each caption that are encoded, 0.3 MB of RAM each."
    )
    max_tokens: Literal[75, 150, 225] = Field(
        default=75, description="Tokens of a caption that are encoded: in chunks of 75, as sd-scripts does."
    )
    too_long: Literal["error", "cut"] = Field(
        default="error", description="A caption of more tokens: an error, or its end is cut off, with a warning."
    )

    @model_validator(mode="after")
    def _tags_are_shuffled(self) -> Self:
        given = [name for name in ("keep_tokens", "shuffle_orders") if getattr(self, name) != _default(self, name)]
        if given and not self.shuffle_tags:
            raise ValueError(f"{given[0]} belongs to shuffle_tags: set that to true, or leave {given[0]} out.")
        return self


Layout = Literal["plain", "kohya", "webdataset"]
_LAYOUT = (
    "plain: the folder with its subfolders; kohya: folders like 10_name in it, with repeats and class tokens; "
    "webdataset: files of the same name up to the first dot belong together, as always in shards."
)


def _known_shards(uri: str) -> str:
    shards(uri)
    return uri


class RegularisationSpec(Section):
    """Pictures of what the model shall not forget, trained in turn with the others (prior preservation)."""

    uri: SourceUri = Field(description="As dataset.uri; captions without trigger. Every other micro-step is theirs.")
    layout: Layout = Field(default="plain", description=_LAYOUT)
    _shards = field_validator("uri")(_known_shards)
    weight: float = Field(default=1.0, gt=0, le=100, description="Of their loss.")


class MasksSpec(Section):
    """What of the pictures is learned: masked loss."""

    source: Literal["alpha", "folder"] = Field(
        description="alpha: the pictures' own channel; folder: pictures of the same name in masks/, white is learned."
    )
    background: float = Field(default=0.0, ge=0, le=1, description="Weight of what the mask leaves out.")


class DatasetSpec(Section):
    """Where the pictures are and how their captions are read."""

    uri: SourceUri = Field(
        description="Pictures with .txt captions beside them: s3://bucket/folder/, or a .zip, .tar, .tar.gz or .tgz "
        "there, or shards, cats-{000..007}.tar, or file:///folder/."
    )
    layout: Layout = Field(default="plain", description=_LAYOUT)
    _shards = field_validator("uri")(_known_shards)
    trigger: Text | None = Field(default=None, description="Put before each caption.")
    captions: CaptionSpec = CaptionSpec()
    repeats: dict[Subfolder, Repeats] = Field(
        default={}, max_length=100, description="Subfolder to how often its pictures come up where others come up once."
    )
    bucket_step_px: Literal[32, 64] | None = Field(
        default=None,
        description="Steps of the sides of bucket sizes; null: 64 from a resolution of 512 up, if it fits, else 32.",
    )
    flip: bool = Field(default=False, description="Train half of the samples mirrored.")
    latents: Literal["mean", "drawn"] = Field(
        default="mean", description="The middle of the VAE's posterior, or a new draw from it for each sample."
    )
    masks: MasksSpec | None = Field(default=None, description="null: everything is learned.")
    regularisation: RegularisationSpec | None = Field(default=None, description="null: off.")

    @model_validator(mode="after")
    def _repeats_are_said_once(self) -> Self:
        if is_sharded(self.uri) and self.layout == "kohya":
            raise ValueError("shards have the webdataset layout: leave layout out, or name one archive or folder.")
        if self.repeats and self.layout == "kohya":
            raise ValueError("repeats belongs to the plain layout: in the kohya layout the folders' names say it.")
        return self

    def uris(self) -> dict[str, str]:
        """Every place that pictures are fetched from, by the field that names it."""
        own = {"dataset.uri": self.uri}
        return own | ({"dataset.regularisation.uri": self.regularisation.uri} if self.regularisation else {})


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


class MemorySpec(Section):
    """A budget for the GPU, or a plan by name."""

    budget_gib: Literal["auto"] | Annotated[float, Field(gt=0, le=1024)] = Field(
        default="auto",
        description="GPU memory that the training may take, GiB: it runs on a card of that size or larger; auto: on "
        "one that it fits, by resolution, batch and checkpointing.",
    )
    checkpointing: Literal["none", "all"] | None = Field(
        default=None, description="Gradient checkpointing of no block or of all; null: loraq chooses."
    )
    base_dtype: Literal["bfloat16", "int8"] | None = Field(
        default=None, description="Of the frozen base weights; null: loraq chooses."
    )
    streamed_blocks: int | None = Field(
        default=None, ge=0, le=70, description="Kept in host memory; null: loraq chooses."
    )


class CheckpointSpec(Section):
    """Saved states of the training that an attempt can go on from."""

    every_n_steps: int | None = Field(
        default=250, ge=1, le=1_000_000, description="How often; null: only when the worker is told to stop."
    )
    keep: int = Field(default=2, ge=1, le=100, description="How many of the newest stay in the bucket.")


class SampleSpec(Section):
    """Pictures drawn while training, to see where it goes."""

    every_n_steps: int | None = Field(default=None, ge=1, le=1_000_000, description="How often; null: only at the end.")
    prompts: tuple[Text, ...] = Field(default=(), max_length=16, description="One picture each.")


Tag = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[^,\x00-\x1f\x7f]+$")]


class MetadataSpec(Section):
    """What the files say of themselves to those who get them; docs/training.md has all that they say besides."""

    title: Text | None = Field(default=None, description="null: the job's name.")
    author: Text | None = Field(default=None, description="null: none is told.")
    description: Text | None = Field(default=None, description="null: base model, number of pictures and steps.")
    tags: tuple[Tag, ...] = Field(default=(), max_length=50, description="Kinds of LoRA that it belongs to: Style.")
    license: Text | None = Field(default=None, description="Its name or address; null: none is told.")
    usage_hint: Text | None = Field(default=None, description="How it is used, in a line; null: dataset.trigger.")
    comment: Text | None = Field(default=None, description="Anything else, as sd-scripts' --training_comment.")


class OutputSpec(Section):
    """Where the results go: `<uri>/<job id>/`."""

    uri: S3Uri = Field(description="Folder in a bucket: s3://outputs/ginger-cat/.")
    formats: tuple[Literal["kohya", "diffusers"], ...] = Field(
        default=("kohya", "diffusers"),
        min_length=1,
        max_length=2,
        description="kohya: lora.safetensors; diffusers: PEFT names.",
    )
    metadata: MetadataSpec = MetadataSpec()


class JobSpec(Section):
    """One SDXL training: of a LoRA, or of all of the U-Net."""

    version: Literal[1] = Field(description="Version of this format.")
    name: Name = Field(description="Short name: a-z, 0-9 and -, at most 63 characters.")
    preset: PresetName | None = Field(default=None, description="Fills what the spec leaves open, by size of the card.")
    base_model: SourceUri = Field(description="SDXL .safetensors file or diffusers folder: s3://, or file:///.")
    dataset: DatasetSpec
    lora: LoRASpec = LoRASpec()
    fine_tuning: FineTuningSpec | None = Field(
        default=None, description="Train all of the U-Net instead of a LoRA; null: a LoRA."
    )
    training: TrainingSpec = TrainingSpec()
    memory: MemorySpec = MemorySpec()
    gpus: int = Field(
        default=1, ge=1, le=16, description="GPUs of one worker that train together; batch_size is that of each."
    )
    checkpoints: CheckpointSpec = CheckpointSpec()
    samples: SampleSpec = SampleSpec()
    output: OutputSpec
    priority: Literal["normal", "high"] = Field(default="normal", description="high goes to the front of the queue.")
    max_duration_s: int = Field(default=86_400, ge=10, le=30 * 86_400, description="A longer attempt is ended.")
    webhook: str | None = Field(
        default=None,
        max_length=2000,
        pattern=r"^https?://",
        description="URL that is told of the end by a signed POST; docs/api.md.",
    )

    @model_validator(mode="after")
    def _buckets_fit(self) -> Self:
        step, resolution = self.dataset.bucket_step_px, self.training.resolution
        if step and resolution % step:
            raise ValueError(
                f"training.resolution is {resolution}, but dataset.bucket_step_px is {step}: use a multiple of it."
            )
        return self

    @model_validator(mode="after")
    def _fine_tuning_alone(self) -> Self:
        if self.fine_tuning is None:
            return self
        optimizer = self.training.optimizer
        if self.preset:
            raise ValueError(f"preset {self.preset} is made for a LoRA, and fine_tuning is none: leave it out.")
        if self.lora != LoRASpec():  # compared, since a spec that was stored names every field
            raise ValueError("fine_tuning trains all of the U-Net, and lora an adapter on it: leave one of them out.")
        if self.output.formats != OutputSpec.model_fields["formats"].default:
            raise ValueError("output.formats are a LoRA's, and fine_tuning leaves one checkpoint: leave formats out.")
        if self.training.ema:
            raise ValueError("training.ema averages a LoRA, not the billions of weights of fine_tuning: leave it out.")
        if "learning_rate" not in optimizer.model_fields_set:
            raise ValueError(
                "fine_tuning moves every weight, and training.optimizer.learning_rate is made for a LoRA: name one, "
                "1e-5 is usual."
            )
        if self.fine_tuning.weights == "bfloat16" and optimizer.name in ("prodigy", "schedule_free_adamw"):
            raise ValueError(
                f"training.optimizer.name is {optimizer.name}, which does not go from weight to weight as fine_tuning "
                "of bfloat16 weights must: use adamw, adamw8bit, adafactor or lion, or float32 weights."
            )
        return self

    @model_validator(mode="after")
    def _one_step_size(self) -> Self:
        text, optimizer = self.lora.text_encoders, self.training.optimizer
        own = text and text.learning_rate
        if optimizer.name == "prodigy" and own not in (None, optimizer.learning_rate):
            raise ValueError(
                f"lora.text_encoders.learning_rate is {own:g}, but prodigy has one step size for all: leave it out."
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: JsonValue) -> JsonValue:
        if isinstance(data, dict) and isinstance(name := data.get("preset"), str) and name in PRESETS:
            return fill(data, PRESETS[name])
        return data
