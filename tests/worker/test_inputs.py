"""What a spec names lies on this machine afterwards: shards each in a folder of its own, within one limit."""

import io
import secrets
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.settings import Settings
from jobs.storage import Storage
from jobs.uri import S3Uri
from worker.archives import ArchiveInvalid
from worker.downloads import Downloads
from worker.inputs import InputMissing, Inputs


def ignore(_bytes: int) -> None:
    pass


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def make_inputs(make_settings: Callable[..., Settings], storage: Storage, tmp_path: Path) -> Iterator[Callable]:
    downloads = Downloads(tmp_path / "downloads", storage, 1 << 30)
    with downloads:
        yield lambda **settings: Inputs(make_settings(**settings), storage, downloads, "ann")


@pytest.fixture
def shards_uri(storage: Storage) -> str:
    """Three shards in the bucket, which hold the same names in part; there are dots in their own."""
    folder = f"s3://datasets/{secrets.token_hex(4)}/"
    for number, text in enumerate((b"one", b"two", b"three")):
        files = {"a.txt": text, f"{number}.txt": text * 1000}
        storage.write(S3Uri.parse(f"{folder}v1.0-{number:02}.tar.gz"), tar(files))
    return f"{folder}v1.0-{{00..02}}.tar.gz"


def test_each_shard_has_a_folder_of_its_own(make_inputs: Callable, shards_uri: str) -> None:
    folder = make_inputs().dataset(shards_uri, ignore)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.txt")) == [
        *("v1.0-00/0.txt", "v1.0-00/a.txt", "v1.0-01/1.txt", "v1.0-01/a.txt", "v1.0-02/2.txt", "v1.0-02/a.txt"),
    ]
    assert (folder / "v1.0-01/a.txt").read_text() == "two"


def test_a_missing_shard_is_named(make_inputs: Callable, shards_uri: str) -> None:
    uri = shards_uri.replace("02}", "03}")
    with pytest.raises(InputMissing, match=r"^dataset\.regularisation\.uri: .*v1\.0-03\.tar\.gz"):
        make_inputs().dataset(uri, ignore, "dataset.regularisation.uri")


def test_a_damaged_shard_is_named(make_inputs: Callable, shards_uri: str, storage: Storage) -> None:
    storage.write(S3Uri.parse(shards_uri.replace("{00..02}", "01")), b"no tar" * 1000)
    with pytest.raises(ArchiveInvalid, match=r"v1\.0-01\.tar\.gz is damaged"):
        make_inputs().dataset(shards_uri, ignore)


def test_shards_unpack_within_one_limit(make_inputs: Callable, shards_uri: str) -> None:
    limit_gib = 10_000 / 2**30  # of 3, 3 and 5 thousand bytes that come out of a few hundred
    with pytest.raises(ArchiveInvalid, match=r"v1\.0-02\.tar\.gz unpacks to more than"):
        make_inputs(max_dataset_gib=limit_gib).dataset(shards_uri, ignore)
