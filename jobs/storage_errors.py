"""What goes wrong between us and the object store, told as our own errors: what, where, and what to do."""

import errno
from collections.abc import Generator
from contextlib import contextmanager

from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from urllib3.exceptions import HTTPError

from jobs.errors import (
    CredentialsExpired,
    DiskFull,
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageUnavailable,
)
from jobs.uri import S3Uri

_NOT_FOUND = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_DENIED = {"401", "403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_FULL = {"507", "InsufficientStorage", "InsufficientCapacity", "QuotaExceeded", "StorageFull", "XMinioStorageFull"}
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def named_errors(uri: S3Uri) -> Generator[None]:
    """Turn what boto3, urllib3 and a full disk raise into a StorageError about `uri`."""
    try:
        yield
    except ClientError as error:
        raise _from_client_error(uri, error) from error
    except S3UploadFailedError as error:
        cause = error.__context__
        if isinstance(cause, ClientError):
            raise _from_client_error(uri, cause) from error
        raise StorageUnavailable(f"{uri} could not be written: {error}.") from error
    except (BotoCoreError, HTTPClientError, HTTPError) as error:
        raise StorageUnavailable(f"The object store did not answer for {uri}: {error}") from error
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise DiskFull(
            f"The worker's disk is full ({error.filename or 'no path named'}, while fetching {uri}). Free some, or "
            "set LORAQ_DATA_DIR to a larger disk."
        ) from error


def _from_client_error(uri: S3Uri, error: ClientError) -> StorageError:
    code = str(error.response.get("Error", {}).get("Code", "unknown"))
    if code == "NoSuchBucket":
        return ObjectNotFound(f"There is no bucket {uri.bucket!r} ({uri}). Make it, or name another.")
    if code in _NOT_FOUND:
        return ObjectNotFound(f"There is no object {uri}. Look at its spelling, or upload it first.")
    if code in _EXPIRED:
        return CredentialsExpired(
            f"The object store says that our credentials have expired ({code}, {uri}). Renew them."
        )
    if code == "RequestTimeTooSkewed":
        return StorageDenied(f"The object store refuses {uri}: this machine's clock is wrong ({code}). Set it.")
    if code in _DENIED:
        return StorageDenied(
            f"The object store refuses access to {uri} ({code}). "
            "Look at LORAQ_S3_ACCESS_KEY_ID, its secret and its rights."
        )
    if code in _FULL:
        return DiskFull(f"The object store has no room for {uri} ({code}). Free some there, or raise its quota.")
    return StorageUnavailable(f"The object store answered {code} for {uri}, after all retries.")
