"""The job spec, version 1: what a user asks for, checked field by field.

Frozen, unknown keys refused, every field bounded and described: docs/job-spec.md and the JSON Schema in
jobs/job-spec.v1.schema.json are generated from it. A field whose work loraq does not carry out yet is refused
by jobs/not_yet.py, never ignored.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, model_validator

from jobs.presets import PRESETS, PresetName, fill
from jobs.spec_dataset import DatasetSpec
from jobs.spec_section import Name, S3Uri, Section, SourceUri, Text
from jobs.spec_trained import FineTuningSpec, LoRASpec
from jobs.spec_training import TrainingSpec


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
