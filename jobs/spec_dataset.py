"""The job spec's `dataset`: pictures, captions, masks, regularisation."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from jobs.shards import is_sharded, shards
from jobs.spec_section import Section, SourceUri, Text, default_of

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
        given = [name for name in ("keep_tokens", "shuffle_orders") if getattr(self, name) != default_of(self, name)]
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
