"""A checkpoint in the bucket: `attempts/<n>/checkpoints/step-NNNNNN/`, whole once its `checkpoint.json` lies there."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from jobs.manifest import ManifestFile

MARKER_NAME = "checkpoint.json"


class CheckpointMarker(BaseModel):
    """Written last: what the checkpoint is made of, with sums of its own."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    job_id: str
    attempt: int
    step: int
    files: tuple[ManifestFile, ...]  # of the checkpoint; `path` is below its folder
    samples: tuple[ManifestFile, ...] = ()  # of the job's output, drawn so far and in the bucket already
