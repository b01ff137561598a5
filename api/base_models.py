"""Base models brought into the bucket: from a URL, a file or standard input, checked by SHA-256 where one is given.

A source may end in `#sha256=...`. The object appears only when all of it has come and the digest is right, so a model
that is there is whole. A download that breaks off goes on where it stopped.
"""

import hashlib
import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from jobs.errors import LoraqError, ObjectNotFound
from jobs.storage import Storage
from jobs.uri import S3Uri

TRIES = 8
PARTIAL_CONTENT, TOO_MANY_REQUESTS = 206, 429
TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_SHA256 = re.compile(r"#sha256=([0-9a-f]{64})$")

OnBytes = Callable[[int], None]


class ModelNotBrought(LoraqError):
    """A base model could not be brought into the bucket; the message says why."""

    code = "model_not_brought"


def bring(source: str, bucket: str, storage: Storage, on_bytes: OnBytes, name: str | None = None) -> tuple[S3Uri, bool]:
    """One base model into `bucket`, under the last part of its address.

    Args:
        source: an http(s) URL, a file, or - for standard input.
        on_bytes: called with the bytes that came since its last call.
        name: what it is called in the bucket; None for its own name.

    Returns:
        Where it lies, and whether it was brought just now; what lies there already is left as it is.

    Raises:
        ModelNotBrought: the source cannot be read, or its digest is another.
        StorageError: the bucket fails.
    """
    match = _SHA256.search(source)
    place = source[: match.start()] if match else source
    name = name or unquote(urlsplit(place).path if place.startswith("http") else place).rpartition("/")[2]
    if not re.fullmatch(r"[\w.-]+\.safetensors", name):
        raise ModelNotBrought(
            f"{name or place} is no name for a base model: it ends in .safetensors. Name it with --name."
        )
    uri = S3Uri(bucket, name)
    try:
        storage.stat(uri)
    except ObjectNotFound:
        stream = io.BufferedReader(_Checked(_chunks(place), match and match[1], place, on_bytes), 1 << 20)
        storage.upload_stream(stream, uri)
        return uri, True
    return uri, False


class _Checked(io.RawIOBase):
    """Chunks as a file to read. Where the digest is wrong its end is an error, so that nobody takes it for whole."""

    def __init__(self, chunks: Iterator[bytes], sha256: str | None, place: str, on_bytes: OnBytes) -> None:
        self._chunks, self._sha256, self._place, self._on_bytes = chunks, sha256, place, on_bytes
        self._digest = hashlib.sha256()
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        if not self._left:
            chunk = next(self._chunks, b"")
            if not chunk:
                self._check()
                return 0
            self._digest.update(chunk)
            self._on_bytes(len(chunk))
            self._left = memoryview(chunk)
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count

    def _check(self) -> None:
        came = self._digest.hexdigest()
        if self._sha256 not in (None, came):
            raise ModelNotBrought(f"{self._place} has SHA-256 {came}, not {self._sha256}: nothing of it was kept.")


def _chunks(place: str) -> Iterator[bytes]:
    if place.startswith(("http://", "https://")):
        return _from_url(place)
    return _from_file(place)


def _from_file(place: str) -> Iterator[bytes]:
    try:
        with sys.stdin.buffer if place == "-" else Path(place).open("rb") as file:
            while chunk := file.read(1 << 20):
                yield chunk
    except OSError as error:
        raise ModelNotBrought(f"{place} cannot be read: {error.strerror}.") from None


def _from_url(url: str) -> Iterator[bytes]:
    """The bytes behind a URL. When it breaks off they are asked for again from where they stopped."""
    done_bytes = 0
    with httpx.Client(follow_redirects=True, timeout=TIMEOUT) as client:
        try:
            for attempt in _patiently():
                headers = {"Range": f"bytes={done_bytes}-", "Accept-Encoding": "identity"}
                with attempt, client.stream("GET", url, headers=headers) as response:
                    response.raise_for_status()
                    if done_bytes and response.status_code != PARTIAL_CONTENT:
                        raise ModelNotBrought(f"{url} broke off, and its server cannot go on where it stopped.")
                    for chunk in response.iter_raw(1 << 20):
                        done_bytes += len(chunk)
                        yield chunk
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            raise ModelNotBrought(f"{url} answered {status}: look whether the address is right.") from None
        except httpx.HTTPError as error:
            raise ModelNotBrought(f"{url} cannot be fetched: {error}.") from None


def _patiently() -> Retrying:
    return Retrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_attempt(TRIES),
        wait=wait_exponential_jitter(initial=1, max=30),
        reraise=True,
    )


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.is_server_error or error.response.status_code == TOO_MANY_REQUESTS
    return isinstance(error, httpx.TransportError)
