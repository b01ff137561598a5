"""The manifest: the last object that a job writes, and the commit of all the others. Without it there is no output.

All else that an attempt writes lies below `attempts/<number>/`, so that one that lost its job without knowing can spoil
nothing of the attempt that has it: docs/decisions/0002.
"""

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

    path: str = Field(description="Its name for a reader, with /: lora.safetensors, samples/….")
    stored_as: str = Field(description="Where it lies below the job's output folder: attempts/1/lora.safetensors.")
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


def attempt_folder(attempt: int) -> str:
    """Where an attempt writes, below the job's output folder."""
    return f"attempts/{attempt}"


def describe_file(path: Path, name: str, stored_as: str) -> ManifestFile:
    """The entry of a file on this machine."""
    return ManifestFile(path=name, stored_as=stored_as, size_bytes=path.stat().st_size, sha256=sha256_of(path))


def describe_folder(folder: Path, stored_under: str) -> tuple[ManifestFile, ...]:
    """The entry of every file below `folder`, in order of their paths; each will lie below `stored_under`."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return tuple(describe_file(folder / name, name, f"{stored_under}/{name}") for name in names)


def manifest_of(folder: Path, job_id: str, attempt: int, earlier: tuple[ManifestFile, ...] = ()) -> Manifest:
    """The manifest of every file below `folder`, and of what `earlier` attempts have left beside them."""
    files = describe_folder(folder, attempt_folder(attempt))
    own = {file.path for file in files}
    kept = tuple(file for file in earlier if file.path not in own)
    return Manifest(job_id=job_id, attempt=attempt, committed_at=now(), files=(*files, *kept))
