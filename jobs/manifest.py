"""The manifest: the last object that a job writes, and the commit of all the others. Without it there is no output."""

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.record import now

MANIFEST_NAME = "manifest.json"


class ManifestFile(BaseModel):
    """One committed object."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(description="Below the job's output folder, with /.")
    size_bytes: int
    sha256: str


class Manifest(BaseModel):
    """What a job left in the bucket."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    job_id: str
    attempt: int
    committed_at: datetime
    files: tuple[ManifestFile, ...]

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.size_bytes for file in self.files)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_folder(folder: Path, job_id: str, attempt: int) -> Manifest:
    """The manifest of every file below `folder`, in order of their paths."""
    files = tuple(
        ManifestFile(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
    return Manifest(job_id=job_id, attempt=attempt, committed_at=now(), files=files)
