"""The S3-compatible bucket: files up, files down, presigned URLs.

No reliance on ETags, user metadata or conditional PUT, which differ between servers: what was written is checked by the
sha256 in the manifest. Checksums are `when_required`, because several servers answer a ranged GET with the checksum
of the whole object. SigV4 and path-style addresses everywhere.
"""

# pyright: reportUnknownMemberType=false
# boto3 types its methods in part.

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from jobs.errors import ObjectNotFound, StorageDenied, StorageError, StorageUnavailable
from jobs.settings import Settings
from jobs.uri import S3Uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PARALLEL_FILES = 8

# One file after another moves in parts of 16 MiB, eight at once; PARALLEL_FILES small files move at once besides.
_TRANSFER = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=16 << 20, max_concurrency=8)

_NOT_FOUND = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_DENIED = {"401", "403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}


@dataclass(frozen=True)
class StoredObject:
    """One object, as a listing shows it."""

    uri: S3Uri
    size_bytes: int
    modified_at: datetime


class Storage:
    """One object store, with the credentials of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._client = _client(settings, settings.s3_endpoint_url)
        self._public = _client(settings, settings.s3_public_endpoint_url or settings.s3_endpoint_url)

    def list(self, folder: S3Uri) -> list[StoredObject]:
        """Every object below `folder`, by key. An empty list says that there is none, or no such folder."""
        found: list[StoredObject] = []
        with _named_errors(folder):
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
        with _named_errors(uri):
            head = self._client.head_object(Bucket=uri.bucket, Key=uri.key)
        return StoredObject(uri, head["ContentLength"], head["LastModified"])

    def read(self, uri: S3Uri, limit_bytes: int = 16 << 20) -> bytes:
        """The content of a small object.

        Raises:
            ObjectNotFound: there is none.
            StorageError: it is larger than `limit_bytes`.
        """
        with _named_errors(uri):
            body = self._client.get_object(Bucket=uri.bucket, Key=uri.key)["Body"]
            data = body.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise StorageError(f"{uri} is larger than {limit_bytes} bytes, the limit for what is read whole.")
        return data

    def write(self, uri: S3Uri, data: bytes) -> None:
        """Write a small object at once."""
        with _named_errors(uri):
            self._client.put_object(Bucket=uri.bucket, Key=uri.key, Body=data)

    def delete(self, uris: Sequence[S3Uri]) -> None:
        """Delete objects, in this order; one that is gone already is no error."""
        for uri in uris:
            with _named_errors(uri):
                self._client.delete_object(Bucket=uri.bucket, Key=uri.key)

    def download(self, uri: S3Uri, path: Path, on_bytes: Callable[[int], None] | None = None) -> None:
        """One object into a file, in parallel parts; the file appears under its name only when it is whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        with _named_errors(uri):
            self._client.download_file(uri.bucket, uri.key, str(part), Config=_TRANSFER, Callback=on_bytes)
        part.replace(path)

    def upload(self, path: Path, uri: S3Uri, on_bytes: Callable[[int], None] | None = None) -> None:
        """One file into an object, in parallel parts."""
        with _named_errors(uri):
            self._client.upload_file(str(path), uri.bucket, uri.key, Config=_TRANSFER, Callback=on_bytes)

    def download_all(self, files: Iterable[tuple[S3Uri, Path]], on_bytes: Callable[[int], None] | None = None) -> None:
        """Many objects, several at once; the first error ends it."""
        _all_at_once(lambda file: self.download(file[0], file[1], on_bytes), files)

    def upload_all(self, files: Iterable[tuple[Path, S3Uri]], on_bytes: Callable[[int], None] | None = None) -> None:
        """Many files, several at once; the first error ends it."""
        _all_at_once(lambda file: self.upload(file[0], file[1], on_bytes), files)

    def presign_get(self, uri: S3Uri, expires_s: int = 3600) -> str:
        """A URL by which anyone may fetch the object for `expires_s` seconds, at the public endpoint."""
        params = {"Bucket": uri.bucket, "Key": uri.key}
        return self._public.generate_presigned_url("get_object", Params=params, ExpiresIn=expires_s)

    def presign_put(self, uri: S3Uri, expires_s: int = 3600) -> str:
        """A URL by which anyone may write the object for `expires_s` seconds, at the public endpoint."""
        params = {"Bucket": uri.bucket, "Key": uri.key}
        return self._public.generate_presigned_url("put_object", Params=params, ExpiresIn=expires_s)

    def check(self, bucket: str) -> None:
        """Raise a StorageError unless the bucket is there and ours to list."""
        with _named_errors(S3Uri(bucket, "")):
            self._client.list_objects_v2(Bucket=bucket, MaxKeys=1)

    def make_bucket(self, bucket: str) -> None:
        """Make a bucket, unless it is there."""
        try:
            self.check(bucket)
        except ObjectNotFound:
            with _named_errors(S3Uri(bucket, "")):
                self._client.create_bucket(Bucket=bucket)


def _client(settings: Settings, endpoint_url: str | None) -> "S3Client":
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "max_attempts": 8},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=PARALLEL_FILES * 2,
    )
    key, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=settings.s3_region,
        aws_access_key_id=key.get_secret_value() if key else None,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=config,
    )


def _all_at_once(move: Callable[[Any], None], files: Iterable[Any]) -> None:
    with ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="storage") as pool:
        moves = [pool.submit(move, file) for file in files]
        try:
            for each in moves:
                each.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _named_errors(uri: S3Uri) -> Generator[None]:
    """Turn boto's errors into ours: what, where, and what to do."""
    try:
        yield
    except ClientError as error:
        raise _from_client_error(uri, error) from error
    except S3UploadFailedError as error:
        cause = error.__context__
        if isinstance(cause, ClientError):
            raise _from_client_error(uri, cause) from error
        raise StorageUnavailable(f"{uri} could not be written: {error}.") from error
    except (BotoCoreError, HTTPClientError) as error:
        raise StorageUnavailable(f"The object store did not answer for {uri}: {error}") from error


def _from_client_error(uri: S3Uri, error: ClientError) -> StorageError:
    code = str(error.response.get("Error", {}).get("Code", "unknown"))
    if code == "NoSuchBucket":
        return ObjectNotFound(f"There is no bucket {uri.bucket!r} ({uri}). Make it, or name another.")
    if code in _NOT_FOUND:
        return ObjectNotFound(f"There is no object {uri}. Look at its spelling, or upload it first.")
    if code in _DENIED:
        return StorageDenied(
            f"The object store refuses access to {uri} ({code}). "
            "Look at LORAQ_S3_ACCESS_KEY_ID, its secret and its rights."
        )
    return StorageUnavailable(f"The object store answered {code} for {uri}, after all retries.")
