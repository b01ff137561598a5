"""The S3-compatible bucket: files up, files down, presigned URLs.

No reliance on ETags, user metadata or conditional PUT, which differ between servers: what was written is checked by the
sha256 in the manifest. Checksums are `when_required`, because several servers answer a ranged GET with the checksum
of the whole object. SigV4 and path-style addresses everywhere.
"""

# pyright: reportUnknownMemberType=false
# boto3 types its methods in part.

import hashlib
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError
from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_any,
    stop_when_event_set,
    wait_exponential_jitter,
)

from jobs.download import Download
from jobs.errors import CredentialsExpired, ObjectNotFound, StorageError, StorageUnavailable
from jobs.object_stream import ObjectStream
from jobs.settings import Settings
from jobs.slow_answers import drop_slow_answers
from jobs.storage_errors import named_errors
from jobs.uri import S3Uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PARALLEL_FILES = 8

UPLOAD_TRIES = 4

_UPLOAD = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=16 << 20, max_concurrency=PARALLEL_FILES)

_UPLOAD_STREAM = TransferConfig(multipart_chunksize=16 << 20, max_concurrency=2)
"""Parts of a stream wait in memory: 64 MiB at most."""

OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class StoredObject:
    """One object, as a listing shows it."""

    uri: S3Uri
    size_bytes: int
    modified_at: datetime


class Storage:
    """One object store, with the credentials of the settings.

    Args:
        moved: told of all bytes of files, "up" or "down" and how many; called from several threads, and with 0 now and
            then.
    """

    def __init__(self, settings: Settings, moved: Callable[[str, int], None] | None = None) -> None:
        self._moved = moved or _count_nothing
        self._stall_s = settings.s3_stall_s
        self._client = _client(settings, settings.s3_endpoint_url)
        self._public = _client(settings, settings.s3_public_endpoint_url or settings.s3_endpoint_url)

    def list(self, folder: S3Uri) -> list[StoredObject]:
        """Every object below `folder`, by key. An empty list says that there is none, or no such folder."""
        found: list[StoredObject] = []
        with named_errors(folder):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=folder.bucket, Prefix=folder.key):
                for entry in page.get("Contents", []):
                    if "Key" in entry and not entry["Key"].endswith("/"):
                        uri = S3Uri(folder.bucket, entry["Key"])
                        found.append(StoredObject(uri, entry.get("Size", 0), entry["LastModified"]))  # pyright: ignore
        return found

    def stat(self, uri: S3Uri) -> StoredObject:
        """Size and time of one object.

        Raises:
            ObjectNotFound: there is none.
        """
        with named_errors(uri):
            head = self._client.head_object(Bucket=uri.bucket, Key=uri.key)
        return StoredObject(uri, head["ContentLength"], head["LastModified"])

    def read(self, uri: S3Uri, limit_bytes: int = 16 << 20) -> bytes:
        """The content of a small object.

        Raises:
            ObjectNotFound: there is none.
            StorageError: it is larger than `limit_bytes`.
        """
        stream = ObjectStream(self._client, uri, self._stall_s)
        if stream.version.size_bytes > limit_bytes:
            raise StorageError(f"{uri} is larger than {limit_bytes} bytes, the limit for what is read whole.")
        return b"".join(stream)

    def write(self, uri: S3Uri, data: bytes) -> None:
        """Write a small object at once."""
        with named_errors(uri):
            self._client.put_object(Bucket=uri.bucket, Key=uri.key, Body=data)

    def delete(self, uris: Sequence[S3Uri]) -> None:
        """Delete objects, in this order; one that is gone already is no error."""
        for uri in uris:
            with named_errors(uri):
                self._client.delete_object(Bucket=uri.bucket, Key=uri.key)

    def sha256(self, uri: S3Uri) -> str:
        """The SHA-256 of one object; see sha256_all."""
        return self.sha256_all([uri])[uri]

    def sha256_all(self, uris: Iterable[S3Uri], on_bytes: OnBytes | None = None) -> dict[S3Uri, str]:
        """The SHA-256 of what lies there, in hexadecimal: every byte is read back, several objects at once.

        Args:
            on_bytes: as of download_all.

        Raises:
            ObjectNotFound: one is not there.
        """
        stop, tell = threading.Event(), self._telling("down", on_bytes)
        sums: dict[S3Uri, str] = {}

        def read(uri: S3Uri) -> None:
            digest = hashlib.sha256()
            for chunk in ObjectStream(self._client, uri, self._stall_s, stop=stop):
                digest.update(chunk)
                tell(len(chunk))
            sums[uri] = digest.hexdigest()

        _all_at_once(read, uris, stop, tell)
        return sums

    def download(self, uri: S3Uri, path: Path, on_bytes: OnBytes | None = None) -> None:
        """One object into a file; see download_all."""
        self.download_all([(uri, path)], on_bytes)

    def upload(self, path: Path, uri: S3Uri, on_bytes: OnBytes | None = None) -> None:
        """One file into an object; see upload_all."""
        self.upload_all([(path, uri)], on_bytes)

    def download_all(self, files: Iterable[tuple[S3Uri, Path]], on_bytes: OnBytes | None = None) -> None:
        """Objects into files, several at once and large ones in parallel parts; the first error ends it.

        A file appears under its name only when it is whole. What has come of the others stays beside them for the next
        try: jobs/download.py.

        Args:
            on_bytes: called with the bytes that came since its last call, also while none come, from several threads;
                may raise to end it.
        """
        stop, tell = threading.Event(), self._telling("down", on_bytes)
        parts = ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="parts")

        def fetch(file: tuple[S3Uri, Path]) -> None:
            Download(self._client, *file, self._stall_s, stop, tell).run(parts)

        try:
            _all_at_once(fetch, files, stop, tell)
        finally:
            parts.shutdown(wait=False, cancel_futures=True)

    def upload_all(self, files: Iterable[tuple[Path, S3Uri]], on_bytes: OnBytes | None = None) -> None:
        """Files into objects, several at once and large ones in parallel parts; the first error ends it."""
        stop, tell = threading.Event(), self._telling("up", on_bytes)

        def count(moved_bytes: int) -> None:
            if stop.is_set():
                raise StorageUnavailable("Another file could not be uploaded.")
            tell(moved_bytes)

        def send(file: tuple[Path, S3Uri]) -> None:
            path, uri = file
            for attempt in _patiently(stop):
                with attempt, named_errors(uri):
                    self._client.upload_file(str(path), uri.bucket, uri.key, Config=_UPLOAD, Callback=count)

        _all_at_once(send, files, stop, tell)

    def upload_stream(self, stream: BinaryIO, uri: S3Uri) -> None:
        """What `stream` still holds into an object, which is there only when the stream has ended well."""
        with named_errors(uri):
            self._client.upload_fileobj(stream, uri.bucket, uri.key, Config=_UPLOAD_STREAM)

    def _telling(self, direction: str, on_bytes: OnBytes | None) -> OnBytes:
        def tell(count: int) -> None:
            self._moved(direction, count)
            if on_bytes is not None:
                on_bytes(count)

        return tell

    def abort_uploads(self, folder: S3Uri) -> int:
        """End multipart uploads below `folder` that were begun and never ended; they cost room and show nowhere.
        A server that cannot list them has none, as far as we can do anything about it.

        Returns:
            How many there were.
        """
        aborted = 0
        with named_errors(folder), _none_where_none_are_listed():
            listing = self._client.get_paginator("list_multipart_uploads")
            for page in listing.paginate(Bucket=folder.bucket, Prefix=folder.key):
                for each in page.get("Uploads", []):
                    if "Key" in each and "UploadId" in each:
                        self._client.abort_multipart_upload(
                            Bucket=folder.bucket, Key=each["Key"], UploadId=each["UploadId"]
                        )
                        aborted += 1
        return aborted

    def presign_get(self, uri: S3Uri, expires_s: int = 3600) -> str:
        """A URL by which anyone may fetch the object for `expires_s` seconds, at the public endpoint."""
        params = {"Bucket": uri.bucket, "Key": uri.key}
        return self._public.generate_presigned_url("get_object", Params=params, ExpiresIn=expires_s)

    def presign_put(self, uri: S3Uri, size_bytes: int, expires_s: int = 3600) -> str:
        """A URL by which anyone may write the object for `expires_s` seconds, at the public endpoint.

        Content-Length is signed: the store refuses a body of another size.
        """
        params = {"Bucket": uri.bucket, "Key": uri.key, "ContentLength": size_bytes}
        return self._public.generate_presigned_url("put_object", Params=params, ExpiresIn=expires_s)

    def check(self, bucket: str) -> None:
        """Raise a StorageError unless the bucket is there and ours to list."""
        with named_errors(S3Uri(bucket, "")):
            self._client.list_objects_v2(Bucket=bucket, MaxKeys=1)

    def make_bucket(self, bucket: str) -> None:
        """Make a bucket, unless it is there."""
        try:
            self.check(bucket)
        except ObjectNotFound:
            with named_errors(S3Uri(bucket, "")):
                self._client.create_bucket(Bucket=bucket)


@contextmanager
def _none_where_none_are_listed() -> Generator[None]:
    """rclone says NoSuchUpload of a bucket that never had an upload in parts; some servers do not list them at all."""
    try:
        yield
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") not in ("NoSuchUpload", "NotImplemented", "MethodNotAllowed"):
            raise


def _client(settings: Settings, endpoint_url: str | None) -> "S3Client":
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "max_attempts": 8},
        connect_timeout=5,
        read_timeout=settings.s3_stall_s,
        max_pool_connections=PARALLEL_FILES * 2,
    )
    key, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    client = boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=settings.s3_region,
        aws_access_key_id=key.get_secret_value() if key else None,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=config,
    )
    drop_slow_answers(client, settings.s3_stall_s)
    return client


def _all_at_once(move: Callable[[Any], None], files: Iterable[Any], stop: threading.Event, tell: OnBytes) -> None:
    """Move each of `files`. At the first error, or when `tell` raises, `stop` is set and the rest is left."""
    pool = ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="storage")
    waiting = {pool.submit(move, file) for file in files}
    try:
        while waiting:
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
            for each in done:
                each.result()
            tell(0)
    except BaseException:
        stop.set()
        for each in waiting:
            each.cancel()
        wait(waiting, timeout=2)  # one that hangs on a socket is not waited for
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _patiently(stop: threading.Event) -> Retrying:
    """Tries of an upload, on top of those that boto3 makes of each request."""
    return Retrying(
        retry=retry_if_exception_type((StorageUnavailable, CredentialsExpired)),
        stop=stop_any(stop_after_attempt(UPLOAD_TRIES), stop_when_event_set(stop)),
        wait=wait_exponential_jitter(multiplier=1, max=20),
        sleep=sleep_using_event(stop),
        reraise=True,
    )


def _count_nothing(_direction: str, _bytes: int) -> None:
    pass
