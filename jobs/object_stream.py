"""The bytes of one object, in order: an answer that breaks off, stalls or trickles is asked for again from there on.

boto3 tries a request again, and leaves a body that breaks off to its caller; a body that brings one byte a second it
takes for a good one, for hours.
"""

# pyright: reportUnknownMemberType=false
# boto3 types its methods in part.

import logging
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from urllib3 import HTTPResponse

from jobs.errors import CredentialsExpired, StorageUnavailable
from jobs.retries import RetryPolicy
from jobs.slow_answers import CHUNK_BYTES, LEAST_BYTES_PER_S
from jobs.storage_errors import named_errors
from jobs.uri import S3Uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

TRIES = 6
"""How often an object is asked for before we give up; boto3 has tried each of the requests several times itself."""

_WAITS = RetryPolicy(wait_s_first=0.5, wait_s_longest=20)


@dataclass(frozen=True)
class Version:
    """What tells one content of an object from the next. ETags are not relied on: they differ between servers."""

    size_bytes: int
    modified_at: datetime


class ObjectStream:
    """An object's bytes from `start` up to `end`; iterate it once.

    Args:
        stall_s: an answer that stays too slow for so long is dropped.
        end: one past the last byte; None for all.
        version: what the object must still be; None for whatever it is when it is opened.
        stop: once set, nothing is waited for.

    Raises:
        StorageUnavailable: it does not come after all tries, or it changed meanwhile.
        StorageError: as jobs/storage_errors.py tells.
    """

    def __init__(
        self,
        client: "S3Client",
        uri: S3Uri,
        stall_s: float,
        start: int = 0,
        end: int | None = None,
        version: Version | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._client = client
        self._uri = uri
        self._stall_s = stall_s
        self._at = start
        self._end = end
        self._stop = stop or threading.Event()
        self._tries = 0
        self._body: HTTPResponse | None = None
        self._version = version
        while self._body is None:
            try:
                self._open()
            except (StorageUnavailable, CredentialsExpired) as error:
                self._wait_or_raise(error)

    @property
    def version(self) -> Version:
        """Of the object that is read."""
        assert self._version is not None
        return self._version

    def stop_at(self, end: int) -> None:
        """Bring no byte from `end` on, although more were asked for."""
        self._end = end

    def __iter__(self) -> Generator[bytes]:
        try:
            while True:
                try:
                    if self._body is None:
                        self._open()
                    yield from self._read()
                    if self._at < self._last():
                        raise StorageUnavailable(f"{self._uri} broke off at byte {self._at} of {self._last()}.")
                    return
                except (StorageUnavailable, CredentialsExpired) as error:
                    self._drop()
                    self._wait_or_raise(error)
        finally:
            self._drop()

    def _last(self) -> int:
        return self.version.size_bytes if self._end is None else min(self._end, self.version.size_bytes)

    def _open(self) -> None:
        ranged: dict[str, Any] = {}
        if self._at or self._end is not None:
            ranged["Range"] = f"bytes={self._at}-{'' if self._end is None else self._end - 1}"
        with named_errors(self._uri):
            answer = self._client.get_object(Bucket=self._uri.bucket, Key=self._uri.key, **ranged)
        # boto3's wrapper has no read1, and its read(n) blocks until n bytes are there, however slowly they come.
        body = cast(HTTPResponse, answer["Body"]._raw_stream)  # pyright: ignore[reportPrivateUsage,reportAttributeAccessIssue]
        whole = answer.get("ContentRange", f"/{answer['ContentLength']}").rpartition("/")[2]
        if ranged and "ContentRange" not in answer:
            raise StorageUnavailable(f"The object store answered for all of {self._uri} when asked for a part of it.")
        found = Version(int(whole), answer["LastModified"])
        if self._version is not None and found != self._version:
            self._tries = TRIES  # to ask again would not help
            body.close()
            raise StorageUnavailable(f"{self._uri} changed while it was fetched. Try again.")
        self._version = found
        self._body = body

    def _read(self) -> Generator[bytes]:
        assert self._body is not None
        since_s, since_at = time.monotonic(), self._at
        while self._at < self._last() and not self._stop.is_set():
            with named_errors(self._uri):
                chunk = self._body.read1(min(CHUNK_BYTES, self._last() - self._at))
            if not chunk:
                return
            self._at += len(chunk)
            yield chunk
            if (seconds := time.monotonic() - since_s) >= self._stall_s:
                if self._at - since_at < seconds * LEAST_BYTES_PER_S:
                    raise StorageUnavailable(
                        f"{self._uri} brought {self._at - since_at} bytes in {seconds:.0f} s: the connection is too "
                        "slow."
                    )
                since_s, since_at = time.monotonic(), self._at
        if self._body.length_remaining == 0:
            self._body.read1(1)  # sees the end, which gives the connection back to the pool

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()  # a connection whose answer was read to its end has gone back to the pool before
            self._body = None

    def _wait_or_raise(self, error: Exception) -> None:
        self._tries += 1
        if self._tries >= TRIES or self._stop.is_set():
            raise error
        log.info("Asking for %s again from byte %d: %s", self._uri, self._at, error)
        self._stop.wait(_WAITS.wait_s(self._tries))
