"""The manifest: every file of a job's output, with its SHA-256.

All that an attempt writes lies below `attempts/<number>/`, so that one that lost its job without knowing can spoil
nothing of the attempt that has it: docs/decisions/0002. Its manifest lies there, too, and becomes the job's when the
record names it by its SHA-256, which only the attempt that holds the job can bring about: docs/decisions/0004. Then
those very bytes are published above, as `<output>/manifest.json`.
"""

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.errors import ObjectNotFound, StorageError
from jobs.record import JobRecord, now
from jobs.storage import Storage
from jobs.uri import S3Uri

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


def own_manifest(attempt: int) -> str:
    """Where an attempt's own manifest lies, below the job's output folder."""
    return f"{attempt_folder(attempt)}/{MANIFEST_NAME}"


def read_committed(storage: Storage, record: JobRecord) -> bytes:
    """The manifest that the record names, as it was written.

    Raises:
        ObjectNotFound: the job has none, or somebody has deleted it.
        StorageError: somebody has changed it.
    """
    if record.commit is None:
        raise ObjectNotFound(f"Job {record.id} has committed no output.")
    uri = S3Uri.parse(record.output_uri) / own_manifest(record.commit.attempt)
    raw = storage.read(uri)
    if hashlib.sha256(raw).hexdigest() != record.commit.sha256:
        raise StorageError(f"{uri} is not what the job committed: it was changed since.")
    return raw


def publish(storage: Storage, record: JobRecord) -> None:
    """Let the committed manifest lie where people look for it. Whoever does it writes the same bytes."""
    raw = read_committed(storage, record)
    published = S3Uri.parse(record.output_uri) / MANIFEST_NAME
    try:
        if storage.read(published) == raw:
            return
    except ObjectNotFound:
        pass
    storage.write(published, raw)


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
