"""What one worker has encoded, another finds in the bucket; what is damaged there is made anew and put in its place."""

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import SecretStr

from jobs.settings import Settings
from jobs.storage import Storage
from jobs.uri import S3Uri
from worker.data.cache import Cache
from worker.encodings import Encodings

SHAPES = {"mean": (4, 2)}


def ignore(_bytes: int) -> None:
    pass


class Worker:
    """A cache folder of its own, and the trainer that fills it."""

    def __init__(self, folder: Path, storage: Storage, uri: S3Uri | None) -> None:
        self.cache = Cache(folder)
        self.encodings = Encodings(folder, storage, uri, folder.parent / f"{folder.name}-answer")

    def encode(self, *pictures: str) -> int:
        """Fetch, make what is missing and upload it; how many were made."""
        paths = [self.cache.path("latents", picture=picture) for picture in pictures]
        names = [path.relative_to(self.cache.folder).as_posix() for path in paths]
        self.encodings.fetch([name for name, path in zip(names, paths, strict=True) if not path.exists()], ignore)
        assert self.encodings.answer.exists()
        for picture, path in zip(pictures, paths, strict=True):
            made = {"mean": torch.full((4, 2), float(len(picture)))}
            loaded = self.cache.load(path, SHAPES, torch.float32)
            if loaded is None:
                self.cache.store(path, made)
            else:
                assert torch.equal(loaded["mean"], made["mean"])
        self.encodings.upload()
        assert self.encodings.finish(timeout_s=30)
        return self.cache.made


@pytest.fixture
def uri() -> S3Uri:
    return S3Uri("outputs", f"{secrets.token_hex(4)}/.encodings/")


@pytest.fixture
def make_worker(storage: Storage, tmp_path: Path, uri: S3Uri) -> Callable[..., Worker]:
    def make(name: str, **changes: object) -> Worker:
        return Worker(tmp_path / name, **({"storage": storage, "uri": uri} | changes))  # type: ignore[arg-type]

    return make


def test_another_worker_makes_nothing_again(make_worker: Callable[..., Worker]) -> None:
    assert make_worker("one").encode("a", "bb") == 2
    assert make_worker("two").encode("a", "bb", "ccc") == 1
    assert make_worker("three").encode("bb", "ccc") == 0


def test_another_owner_s_are_not_found(make_worker: Callable[..., Worker]) -> None:
    make_worker("one").encode("a")
    other = S3Uri("outputs", f"{secrets.token_hex(4)}/.encodings/")
    assert make_worker("two", uri=other).encode("a") == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "exchange"])
def test_a_damaged_one_is_made_anew_and_put_in_its_place(
    make_worker: Callable[..., Worker], storage: Storage, damage: str
) -> None:
    first = make_worker("one")
    first.encode("a", "bb")
    assert first.encodings._uri
    objects = {each.uri: storage.read(each.uri) for each in storage.list(first.encodings._uri)}
    (damaged, sound), (_, other) = objects.items()
    flipped = bytearray(sound)
    flipped[-1] ^= 1
    spoilt = {"flip": bytes(flipped), "cut": sound[:-4], "empty": b"", "exchange": other}[damage]
    storage.write(damaged, spoilt)

    assert make_worker("two").encode("a", "bb") == 1

    assert {each: storage.read(each) for each in objects} == objects
    assert make_worker("three").encode("a", "bb") == 0


@pytest.mark.parametrize("folder", ["s3://outputs/encodings/", "s3://outputs-{owner}/", "outputs/{owner}/", "/{owner}"])
def test_a_folder_that_owners_would_share_is_refused(make_settings: Callable[..., Settings], folder: str) -> None:
    with pytest.raises(ValueError, match="is no folder in a bucket for each owner"):
        make_settings(encodings_uri=folder)
    assert make_settings(encodings_uri="").encodings_uri == ""


def test_without_a_folder_in_the_bucket_nothing_is_put_there(make_worker: Callable[..., Worker]) -> None:
    assert make_worker("one", uri=None).encode("a") == 1
    assert make_worker("two").encode("a") == 1


def test_a_bucket_that_refuses_fails_no_job(
    make_worker: Callable[..., Worker], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    denied = Storage(settings.model_copy(update={"s3_secret_access_key": SecretStr("wrong")}))
    pictures = [f"{'p' * n}" for n in range(1, 12)]
    assert make_worker("one", storage=denied).encode(*pictures) == 11
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.partition(", as ")[0] for line in told] == [
        "Some encodings were not fetched",
        "Some encodings were not uploaded",
    ]


def test_a_name_that_leads_out_of_the_folder_is_passed_over(make_worker: Callable[..., Worker], tmp_path: Path) -> None:
    worker = make_worker("one")
    worker.encodings.fetch(["../escaped", "/etc/passwd", "a//b", "", "."], ignore)
    assert worker.encodings._wanted == []
    assert worker.encodings.answer.exists()


def test_who_asks_may_end_it(make_worker: Callable[..., Worker]) -> None:
    class Cancelled(Exception):
        pass

    def cancel(_bytes: int) -> None:
        raise Cancelled

    worker = make_worker("one")
    with pytest.raises(Cancelled):
        worker.encodings.fetch(["latents/a"], cancel)
    assert not worker.encodings.answer.exists()
