"""One object into a file: parts side by side, going on after any end, and whole under its name or not there.

Beside `name.part` lies `name.parts`, which says what object it is of and which of its parts have come. A process that
is killed loses what it had of the parts under way; the next one asks for those and the missing ones only.
"""

# pyright: reportUnknownMemberType=false
# boto3 types its methods in part.

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ValidationError

from jobs.object_stream import ObjectStream, Version
from jobs.storage_errors import named_errors
from jobs.uri import S3Uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART_BYTES = 16 << 20


class Journal(BaseModel):
    """Which parts of which version of an object have come."""

    version: Version
    done: list[int] = []  # numbers of parts, from 0

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """What lies there; None if there is none, or it is damaged."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        new = path.with_name(f"{path.name}.new")
        new.write_text(self.model_dump_json())
        new.replace(path)

    def missing(self) -> Iterator[int]:
        """Numbers of the parts that have not come."""
        done = set(self.done)
        parts = -(-self.version.size_bytes // PART_BYTES)
        return (number for number in range(parts) if number not in done)


class Download:
    """One download. `stop`, once set, ends it at the next bytes.

    Args:
        on_bytes: called with the number of bytes that came since its last call, from several threads; may raise.
    """

    def __init__(
        self,
        client: "S3Client",
        uri: S3Uri,
        path: Path,
        stall_s: float,
        stop: threading.Event,
        on_bytes: Callable[[int], None],
    ) -> None:
        self._client = client
        self._uri = uri
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._journal_path = path.with_name(f"{path.name}.parts")
        self._stall_s = stall_s
        self._stop = stop
        self._on_bytes = on_bytes
        self._lock = threading.Lock()

    def run(self, pool: ThreadPoolExecutor) -> None:
        """Fetch what is missing, parts of large objects in `pool`, which must not be the one that this runs in.

        Raises:
            StorageError: what has come stays for the next try.
        """
        with named_errors(self._uri):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._part, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._fill(file, pool)
                os.fsync(file)
            finally:
                os.close(file)
            self._part.replace(self._path)
            self._journal_path.unlink(missing_ok=True)

    def _fill(self, file: int, pool: ThreadPoolExecutor) -> None:
        journal = self._journal()
        first = next(journal.missing(), 0) if journal else 0
        stream = ObjectStream(
            self._client,
            self._uri,
            self._stall_s,
            first * PART_BYTES,
            version=journal.version if journal else None,
            stop=self._stop,
        )
        if journal is None:
            journal = Journal(version=stream.version)
            os.ftruncate(file, 0)
        os.ftruncate(file, journal.version.size_bytes)
        stream.stop_at((first + 1) * PART_BYTES)
        rest = [number for number in journal.missing() if number != first]
        others = [pool.submit(self._fetch, file, journal, number) for number in rest]
        try:
            self._take(file, journal, first, stream)
            for each in others:
                each.result()
        except BaseException:
            self._stop.set()
            raise
        finally:
            wait([each for each in others if not each.cancel()])  # none may write once the file is closed

    def _journal(self) -> Journal | None:
        """What an earlier process noted, if the object is still the one that it fetched."""
        journal = Journal.load(self._journal_path)
        if journal is None:
            return None
        head = self._client.head_object(Bucket=self._uri.bucket, Key=self._uri.key)
        return journal if journal.version == Version(head["ContentLength"], head["LastModified"]) else None

    def _fetch(self, file: int, journal: Journal, number: int) -> None:
        start = number * PART_BYTES
        stream = ObjectStream(
            self._client, self._uri, self._stall_s, start, start + PART_BYTES, journal.version, self._stop
        )
        self._take(file, journal, number, stream)

    def _take(self, file: int, journal: Journal, number: int, stream: ObjectStream) -> None:
        """Write one part's bytes, and note that they are there."""
        at = number * PART_BYTES
        for chunk in stream:
            at += os.pwrite(file, chunk, at)
            self._on_bytes(len(chunk))
        if journal.version.size_bytes > PART_BYTES:
            os.fdatasync(file)  # the journal must not be ahead of the disk
            with self._lock:
                journal.done.append(number)
                journal.save(self._journal_path)
