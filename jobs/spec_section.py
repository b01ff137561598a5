"""What all sections of the job spec are made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints


class Section(BaseModel):
    """A part of the spec: frozen, and with no room for a misspelt key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def default_of(section: Section, name: str) -> object:
    """What a field of a section is when nobody names it."""
    return type(section).model_fields[name].default


# Control characters would forge log lines, and no name needs them.
Text = Annotated[str, StringConstraints(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
S3Uri = Annotated[
    str, StringConstraints(max_length=1100, pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\x00-\x1f\x7f]*)?$")
]
SourceUri = Annotated[str, StringConstraints(max_length=1100, pattern=r"^(s3|hf|file)://[^\x00-\x1f\x7f]+$")]
