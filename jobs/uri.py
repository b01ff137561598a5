"""Addresses of files: s3://bucket/key and file:///folder, and which of them an owner's spec may name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from jobs.errors import UriNotAllowed
from jobs.settings import Settings


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


def check_readable(uri: S3Uri, settings: Settings, owner: str) -> None:
    """Raise UriNotAllowed unless the operator lets `owner` read there."""
    _check_below(uri, settings.readable, owner, "read", "LORAQ_READABLE")


def check_writable(uri: S3Uri, settings: Settings, owner: str) -> None:
    """Raise UriNotAllowed unless the operator lets `owner` write there."""
    _check_below(uri, settings.writable, owner, "write", "LORAQ_WRITABLE")


def _check_below(uri: S3Uri, opened: tuple[str, ...], owner: str, do: str, setting: str) -> None:
    folders = [S3Uri.parse(each.replace("{owner}", owner)).folder() for each in opened]
    if not any(uri.bucket == each.bucket and uri.folder().key.startswith(each.key) for each in folders):
        names = ", ".join(map(str, folders)) or "nowhere"
        raise UriNotAllowed(f"{uri} lies outside where {owner} may {do}: {names} ({setting}). Name a folder there.")


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
