"""Addresses of files: s3://bucket/key and file:///folder, and which of them a spec may name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from jobs.errors import UriNotAllowed


@dataclass(frozen=True)
class S3Uri:
    """An object, or everything below a prefix."""

    bucket: str
    key: str  # no leading slash; "" is the whole bucket; ends in / for a folder

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Read s3://bucket/key. The key is taken as it stands: nothing is percent-decoded.

        Raises:
            UriNotAllowed: it is no s3:// URI, or a part of the key is "." or "..".
        """
        scheme, _, rest = uri.partition("://")
        bucket, _, key = rest.partition("/")
        if scheme != "s3" or not bucket:
            raise UriNotAllowed(f"{uri} is not an s3:// URI: write s3://bucket/folder/.")
        if any(part in (".", "..") for part in key.split("/")):
            raise UriNotAllowed(f"{uri} has . or .. in its path: write the path out.")
        return cls(bucket, key)

    def folder(self) -> Self:
        """The same as a folder: with a / at its end, unless it is the whole bucket."""
        return type(self)(self.bucket, self.key if not self.key or self.key.endswith("/") else f"{self.key}/")

    def __truediv__(self, name: str) -> Self:
        return type(self)(self.bucket, f"{self.folder().key}{name}")

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def check_bucket_allowed(uri: S3Uri, buckets: tuple[str, ...]) -> None:
    """Raise UriNotAllowed unless the operator opened this bucket."""
    if uri.bucket not in buckets:
        raise UriNotAllowed(
            f"{uri} names the bucket {uri.bucket!r}, but specs may name only {', '.join(buckets)} (LORAQ_BUCKETS)."
        )


def allowed_folder(uri: str, folders: tuple[Path, ...]) -> Path:
    """The path that file:///… names, if it lies in a folder that the operator opened, links followed.

    Raises:
        UriNotAllowed: it does not.
    """
    parts = urlsplit(uri)
    path = Path(unquote(parts.path)).resolve()
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise UriNotAllowed(f"{uri} is not a file:// URI of this machine: write file:///folder/.")
    if not any(path.is_relative_to(folder.resolve()) for folder in folders):
        opened = ", ".join(str(folder) for folder in folders) or "no folder at all"
        raise UriNotAllowed(f"{uri} lies outside what the operator opened (LORAQ_ALLOWED_FOLDERS): {opened}.")
    return path
