"""Watches the system all the while, as a user does by the API, and as a reader of the bucket does."""

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from api.client import Loraq
from api.client_errors import ApiError
from jobs.checkpoint import MARKER_NAME
from jobs.manifest import MANIFEST_NAME, Manifest
from jobs.status import Status

LOOKS_EVERY_S = 0.1
NEWEST = 20
"""How many of an owner's jobs a look takes in: more than a schedule has."""


@dataclass(frozen=True)
class Commit:
    """A manifest, as it lay in the bucket."""

    sha256: str
    manifest: Manifest


class Watch:
    """What has been seen so far; a context manager that looks from a thread of its own.

    Args:
        clients: one for each owner. The watch has them to itself.
        outputs: the folder on disk below which the object store keeps the outputs of all jobs.
    """

    def __init__(self, clients: list[Loraq], outputs: Path) -> None:
        self.statuses: dict[str, Status] = {}  # of each job, as it was last seen
        self.commits: dict[str, Commit] = {}  # of each job, as it was first seen
        self.checkpoints: set[str] = set()  # jobs that have put one into the bucket
        self.broken: list[str] = []
        self.looks = 0
        self._clients = clients
        self._outputs = outputs
        self._seen_files: dict[str, tuple[int, int, int]] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._look_until_closed, name="watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        for client in self._clients:
            client.close()

    def look_at_statuses(self) -> None:
        """One look by the API at the newest jobs of each owner."""
        for client in self._clients:
            for job in client.list(limit=NEWEST).jobs:
                self.saw(job.id, job.status)

    def look_at_commits(self) -> None:
        """One look into the bucket, at every manifest and checkpoint that is there."""
        self.checkpoints |= {path.parts[-6] for path in self._outputs.glob(f"*/attempts/*/checkpoints/*/{MARKER_NAME}")}
        for path in self._outputs.glob(f"*/{MANIFEST_NAME}"):
            self._saw_manifest(path)
        for job_id in self.commits:
            if not (self._outputs / job_id / MANIFEST_NAME).exists():
                self._break(f"{job_id} had a manifest, and has none any more")

    def saw(self, job_id: str, status: Status) -> None:
        """Take in a status that someone was told."""
        before = self.statuses.get(job_id)
        if before is not None and before.final and status is not before:
            self._break(f"{job_id} was {before}, which is final, and is {status}")
        else:
            self.statuses[job_id] = status

    def _saw_manifest(self, path: Path) -> None:
        job_id = path.parent.name
        try:
            stat = path.stat()
            version = stat.st_ino, stat.st_size, stat.st_mtime_ns
            if self._seen_files.get(job_id) == version:
                return
            content = path.read_bytes()
            commit = Commit(hashlib.sha256(content).hexdigest(), Manifest.model_validate_json(content))
        except (OSError, ValidationError):
            return  # it is just being written, or goes: the next look tells
        self._seen_files[job_id] = version
        first = self.commits.setdefault(job_id, commit)
        if commit.sha256 != first.sha256:
            attempts = f"attempt {first.manifest.attempt} and then attempt {commit.manifest.attempt}"
            self._break(f"{job_id} was committed twice, by {attempts}")

    def _break(self, sentence: str) -> None:
        if sentence not in self.broken:
            self.broken.append(sentence)

    def _look_until_closed(self) -> None:
        while not self._closing.wait(LOOKS_EVERY_S):
            self.look_at_commits()
            try:
                self.look_at_statuses()
                self.looks += 1
            except ApiError:
                pass  # it was killed, frozen, or cannot ask Redis
