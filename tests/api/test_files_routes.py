"""Datasets up and artifacts down, by presigned URLs against a real S3 server."""

import contextlib
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.client import Loraq
from api.client_errors import ApiError, TransferFailed
from api.local_dataset import NotADataset
from api.schemas import MAX_DATASET_FILES, Artifact
from api.transfers import fetch_file
from jobs.errors import ObjectNotFound
from jobs.manifest import own_manifest
from jobs.record import JobRecord
from jobs.spec import JobSpec
from jobs.status import Status
from jobs.storage import Storage
from jobs.store import Store
from jobs.uri import S3Uri

pytestmark = pytest.mark.integration

MakeSpec = Callable[..., JobSpec]
EndJob = Callable[..., JobRecord]


def test_a_folder_goes_up_whole(loraq: Loraq, storage: Storage, photos: Path) -> None:
    arrived: list[str] = []
    dataset = loraq.upload_dataset(photos, on_file=arrived.append)
    assert dataset.uri.startswith("s3://datasets/alice/photos-")
    assert len(dataset.contents.pictures) == len(dataset.contents.captions) == 8
    assert dataset.contents.left_out == ("LICENSES.md",)
    assert sorted(arrived) == sorted(dataset.contents.files)
    folder = S3Uri.parse(dataset.uri)
    assert len(storage.list(folder)) == 16
    for name in dataset.contents.files:
        assert storage.read(folder / name) == (photos / name).read_bytes()


def test_names_with_spaces_umlauts_and_folders_and_empty_captions(
    loraq: Loraq, storage: Storage, tmp_path: Path
) -> None:
    files = {"a b/Kätzchen #1+2%.jpg": b"picture", "a b/Kätzchen #1+2%.txt": b""}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    folder = S3Uri.parse(loraq.upload_dataset(tmp_path, name="cats").uri)
    assert {name: storage.read(folder / name) for name in files} == files


def test_an_archive_goes_up_as_it_is(loraq: Loraq, storage: Storage, photos: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", photos))
    dataset = loraq.upload_dataset(archive)
    assert (len(dataset.contents.pictures), len(dataset.contents.captions)) == (8, 8)
    assert dataset.uri.startswith("s3://datasets/alice/photos-")
    assert dataset.uri.endswith("/photos.zip")
    assert storage.read(S3Uri.parse(dataset.uri)) == archive.read_bytes()


@pytest.mark.parametrize("announced", [0, 5])
def test_the_store_takes_what_was_announced_and_nothing_else(
    url: str, alice: dict[str, str], storage: Storage, announced: int
) -> None:
    body = {"name": "cats", "files": [{"path": "cat.jpg", "size_bytes": announced}]}
    dataset = httpx.post(f"{url}/v1/datasets", json=body, headers=alice).json()
    uri, target = S3Uri.parse(dataset["uri"]) / "cat.jpg", dataset["files"][0]["url"]

    for size in {0, announced - 1, announced + 1, 1_000_000} - {-1, announced}:
        assert httpx.put(target, content=b"x" * size, headers={"Content-Length": str(size)}).status_code == 403
    assert httpx.put(target, content=iter([b"x" * announced])).status_code == 403  # chunked: it does not say how much
    announced_falsely = {"Content-Length": str(announced), "Transfer-Encoding": "chunked"}
    with contextlib.suppress(httpx.HTTPError):
        httpx.put(target, content=iter([b"x" * 1_000_000]), headers=announced_falsely)
    with pytest.raises(ObjectNotFound):
        storage.stat(uri)

    content = b"x" * announced
    assert httpx.put(target, content=content, headers={"Content-Length": str(announced)}).status_code == 200
    assert storage.read(uri) == content


def test_an_archive_is_a_dataset_by_itself_and_may_be_larger_than_a_picture(url: str, alice: dict[str, str]) -> None:
    mixed = [{"path": "cats.zip", "size_bytes": 1}, {"path": "cat.jpg", "size_bytes": 1}]
    assert "by itself" in _new_dataset(url, alice, mixed)["problems"][0]["message"]
    large = {"path": "cat.jpg", "size_bytes": (1 << 30) + 1}
    assert "1 GiB" in _new_dataset(url, alice, [large])["problems"][0]["message"]
    too_large = {"path": "cats.zip", "size_bytes": (5 << 30) + 1}
    assert _new_dataset(url, alice, [too_large])["problems"][0]["field"] == "files.0.size_bytes"
    archive = {"name": "cats", "files": [large | {"path": "Cats.TAR.GZ"}]}
    assert httpx.post(f"{url}/v1/datasets", json=archive, headers=alice).json()["uri"].endswith("/Cats.TAR.GZ")


def test_two_uploads_never_mix(loraq: Loraq, photos: Path) -> None:
    assert loraq.upload_dataset(photos).uri != loraq.upload_dataset(photos).uri


def test_a_folder_without_pictures_is_refused(loraq: Loraq, tmp_path: Path) -> None:
    (tmp_path / "caption.txt").write_text("a cat")
    with pytest.raises(NotADataset, match="no picture"):
        loraq.upload_dataset(tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        "../up.jpg",
        "/root.jpg",
        "a/../b.jpg",
        "a//b.jpg",
        "./a.jpg",
        "a\\b.jpg",
        "a\n.jpg",
        "a.exe",
        ".jpg",
        "x" * 500 + ".jpg",
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(url: str, alice: dict[str, str], path: str) -> None:
    problem = _new_dataset(url, alice, [{"path": path, "size_bytes": 1}])
    assert problem["code"] == "invalid_request"
    assert problem["problems"][0]["field"] == "files.0.path"


def test_all_faults_of_a_dataset_are_named_at_once(url: str, alice: dict[str, str]) -> None:
    files = [{"path": "a.exe", "size_bytes": 1}, {"path": "b.jpg", "size_bytes": -1}, {"path": "c.jpg"}]
    fields = {each["field"] for each in _new_dataset(url, alice, files, name="My Cats")["problems"]}
    assert fields == {"name", "files.0.path", "files.1.size_bytes", "files.2.size_bytes"}


def test_a_dataset_has_a_limit_and_no_path_twice(url: str, alice: dict[str, str]) -> None:
    many = [{"path": f"{number}.jpg", "size_bytes": 1} for number in range(MAX_DATASET_FILES + 1)]
    assert _new_dataset(url, alice, many)["problems"][0]["field"] == "files"
    assert _new_dataset(url, alice, [])["problems"][0]["field"] == "files"
    assert "twice" in _new_dataset(url, alice, many[:1] * 2)["problems"][0]["message"]


def test_pull_brings_what_was_committed(loraq: Loraq, make_spec: MakeSpec, end_job: EndJob, tmp_path: Path) -> None:
    files = {"lora.safetensors": b"weights" * 1000, "samples/step 1.png": b"picture", "empty.log": b""}
    job_id = loraq.submit(make_spec()).id
    end_job(job_id, files=files)
    listed = {file.path: file for file in loraq.artifacts(job_id).files}
    assert {name: file.sha256 for name, file in listed.items()} == {
        name: hashlib.sha256(content).hexdigest() for name, content in files.items()
    }
    folder = tmp_path / "pulled"
    assert len(loraq.pull(job_id, folder).fetched) == 3
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert not list(folder.rglob("*.part"))


def test_pull_keeps_what_is_whole_and_mends_what_is_not(
    loraq: Loraq, make_spec: MakeSpec, end_job: EndJob, tmp_path: Path
) -> None:
    job_id = loraq.submit(make_spec()).id
    end_job(job_id, files={"a": b"aaaa", "b": b"bbbb", "c": b"cccc"})
    loraq.pull(job_id, tmp_path / "out")
    before = (tmp_path / "out" / "a").stat().st_mtime_ns
    (tmp_path / "out" / "b").write_bytes(b"xxxx")
    (tmp_path / "out" / "c").unlink()
    pulled = loraq.pull(job_id, tmp_path / "out")
    assert {file.path for file in pulled.fetched} == {"b", "c"}
    assert (tmp_path / "out" / "a").stat().st_mtime_ns == before
    assert (tmp_path / "out" / "b").read_bytes() == b"bbbb"


def test_a_file_that_is_not_what_was_committed_never_appears(
    loraq: Loraq,
    make_spec: MakeSpec,
    end_job: EndJob,
    storage: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.transfers.sleep", lambda _: None)
    job_id = loraq.submit(make_spec()).id
    record = end_job(job_id)
    storage.write(S3Uri.parse(record.output_uri) / "attempts/1/lora.safetensors", b"tampered")
    with pytest.raises(TransferFailed, match="SHA-256"):
        loraq.pull(job_id, tmp_path / "out")
    assert not (tmp_path / "out" / "lora.safetensors").exists()


def test_a_manifest_that_somebody_has_changed_since_is_not_believed(
    loraq: Loraq, make_spec: MakeSpec, end_job: EndJob, storage: Storage
) -> None:
    job_id = loraq.submit(make_spec()).id
    record = end_job(job_id)
    uri = S3Uri.parse(record.output_uri) / own_manifest(1)
    storage.write(uri, storage.read(uri).replace(b"attempts/1/", b"attempts/2/"))
    with pytest.raises(ApiError, match="changed since"):
        loraq.artifacts(job_id)


@pytest.mark.parametrize("path", ["../outside", "/tmp/outside", "a/../../outside"])
def test_no_path_leads_out_of_the_folder(tmp_path: Path, path: str) -> None:
    content = b"evil"
    artifact = Artifact(path=path, size_bytes=4, sha256=hashlib.sha256(content).hexdigest(), url="http://store/file")
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, content=content)

    with (
        httpx.Client(transport=httpx.MockTransport(answer)) as http,
        pytest.raises(TransferFailed, match="leads out of"),
    ):
        fetch_file(http, artifact, tmp_path / "out")
    assert not asked
    assert not (tmp_path / "outside").exists()


def test_presigned_urls_need_no_token_and_cannot_be_changed(loraq: Loraq, make_spec: MakeSpec, end_job: EndJob) -> None:
    job_id = loraq.submit(make_spec()).id
    end_job(job_id)
    (artifact,) = loraq.artifacts(job_id).files
    assert httpx.get(artifact.url).content == b"weights"
    assert httpx.get(artifact.url.replace("lora.safetensors", "manifest.json")).status_code == 403
    assert httpx.put(artifact.url, content=b"other").status_code in (400, 403)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (Status.QUEUED, "is queued"),
        (Status.PREPARING, "is preparing"),
        (Status.FAILED, "The loss is NaN"),
        (Status.CANCELLED, "was cancelled"),
    ],
)
def test_without_a_manifest_the_reason_is_told(
    loraq: Loraq, store: Store, make_spec: MakeSpec, end_job: EndJob, status: Status, words: str
) -> None:
    job_id = loraq.submit(make_spec()).id
    if status is Status.PREPARING:
        store.claim(job_id, "test-worker")
    elif status is not Status.QUEUED:
        end_job(job_id, status)
    with pytest.raises(ApiError, match=words) as refused:
        loraq.artifacts(job_id)
    assert (refused.value.status, refused.value.code) == (409, "no_artifacts_yet")


def _new_dataset(url: str, who: dict[str, str], files: list[dict[str, Any]], name: str = "cats") -> dict[str, Any]:
    answer = httpx.post(f"{url}/v1/datasets", json={"name": name, "files": files}, headers=who, timeout=30)
    assert answer.status_code == 422
    return answer.json()
