"""A checkpoint in the bucket: `attempts/<n>/checkpoints/step-NNNNNN/`, whole once its `checkpoint.json` lies there."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from jobs.manifest import ManifestFile
from jobs.storage import Storage, StoredObject
from jobs.uri import S3Uri

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


def is_marker(each: StoredObject) -> bool:
    """Whether an object commits a checkpoint."""
    return "/checkpoints/step-" in each.uri.key and each.uri.key.endswith(f"/{MARKER_NAME}")


def delete_checkpoints(storage: Storage, output_uri: S3Uri) -> None:
    """Delete every checkpoint of a job, whole or not, markers first: nothing will go on from one."""
    objects = [each for each in storage.list(output_uri / "attempts/") if "/checkpoints/step-" in each.uri.key]
    storage.delete([each.uri for each in sorted(objects, key=is_marker, reverse=True)])
