"""Files between this machine and presigned URLs: several at once, tried again, and checked by SHA-256 on arrival."""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import TypeVar

import httpx

from api.client_errors import TransferFailed
from api.schemas import Artifact
from jobs.manifest import sha256_of

PARALLEL_FILES = 8
TRIES = 4
CHUNK_BYTES = 1 << 20

T = TypeVar("T")


def put_file(http: httpx.Client, path: Path, url: str) -> None:
    """Upload one file.

    Raises:
        TransferFailed: after all tries.
    """

    def put() -> None:
        with path.open("rb") as content:
            # Stated, because a presigned PUT takes no chunked body, which httpx sends for an empty file.
            http.put(url, content=content, headers={"Content-Length": str(path.stat().st_size)}).raise_for_status()

    _with_tries(put, f"{path} could not be uploaded")


def fetch_file(http: httpx.Client, artifact: Artifact, folder: Path) -> bool:
    """Download one file below `folder`; it appears under its name only when it is whole.

    Returns whether it had to be fetched: False if it lay there, whole, already.

    Raises:
        TransferFailed: after all tries, or its path leads out of the folder.
    """
    path = folder / artifact.path
    if not path.resolve().is_relative_to(folder.resolve()):
        raise TransferFailed("path_refused", f"{artifact.path} leads out of {folder}: it was not written.")
    if path.is_file() and path.stat().st_size == artifact.size_bytes and sha256_of(path) == artifact.sha256:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")

    def fetch() -> None:
        digest = hashlib.sha256()
        with http.stream("GET", artifact.url) as response, part.open("wb") as file:
            response.raise_for_status()
            for chunk in response.iter_bytes(CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != artifact.sha256:
            raise _Damaged("it differs from the manifest's SHA-256")

    _with_tries(fetch, f"{artifact.path} could not be downloaded")
    part.replace(path)
    return True


def all_at_once(move: Callable[[T], object], items: Iterable[T], on_done: Callable[[T], None] | None = None) -> None:
    """Do `move` for each, several at a time; the first error ends it."""
    items = list(items)
    with ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="transfer") as pool:
        moves = [pool.submit(move, item) for item in items]
        try:
            for item, each in zip(items, moves, strict=True):
                each.result()
                if on_done:
                    on_done(item)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Damaged(Exception):
    """What arrived is not what was sent."""


def _with_tries(move: Callable[[], None], what_failed: str) -> None:
    for count in range(1, TRIES + 1):
        try:
            move()
        except (httpx.HTTPError, _Damaged) as error:
            refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500
            if refused or count == TRIES:
                raise TransferFailed("transfer_failed", f"{what_failed}: {_without_query(error)}.") from error
            sleep(0.5 * 2**count)
        else:
            return


def _without_query(error: Exception) -> str:
    """What went wrong, without the URL: its signature is a key to the file."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"the object store answered {error.response.status_code}"
    return str(error) or type(error).__name__
