"""The API as a real HTTP server, people with tokens, and jobs that end without a worker."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import uvicorn

from api.app import create_app
from api.auth import create_token
from api.client import Loraq
from api.servers import RedisServer, free_port
from jobs.manifest import MANIFEST_NAME, manifest_of, own_manifest
from jobs.record import Failure, JobRecord
from jobs.settings import Settings
from jobs.status import Status
from jobs.storage import Storage
from jobs.store import Store
from jobs.uri import S3Uri

QUEUE = "test-api"


@contextmanager
def served(settings: Settings, storage: Storage | None = None) -> Iterator[str]:
    """Serve the API with given settings; gives its URL."""
    port = free_port()
    app = create_app(settings, storage=storage)
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def serve() -> Iterator[Callable[[Settings], str]]:
    """Serve the API with settings of one's own until the test ends; gives its URL."""
    with ExitStack() as stack:
        yield lambda settings: stack.enter_context(served(settings))


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """The settings of the API at `url`; Redis is empty."""
    return make_settings(queue=QUEUE)


@pytest.fixture(scope="session")
def shared_api(redis_server: RedisServer, storage: Storage) -> Iterator[str]:
    """One API for all tests of this folder: it keeps nothing in memory that one could leave to another."""
    opened = {"readable": "s3://datasets/,s3://models/", "writable": "s3://outputs/"}
    with served(Settings.model_validate({"redis_url": redis_server.url, "queue": QUEUE} | opened), storage) as url:
        yield url


@pytest.fixture
def url(shared_api: str, settings: Settings) -> str:
    """Where the API is."""
    return shared_api


@pytest.fixture
def client_of(url: str, store: Store) -> Iterator[Callable[[str], Loraq]]:
    """A client with a new token of an owner."""
    with ExitStack() as stack:
        yield lambda owner: stack.enter_context(Loraq(url, create_token(store.redis, owner)))


@pytest.fixture
def alice(url: str, store: Store) -> dict[str, str]:
    """The header by which alice shows who she is, for requests by hand."""
    return {"Authorization": f"Bearer {create_token(store.redis, 'alice')}"}


@pytest.fixture
def loraq(client_of: Callable[[str], Loraq]) -> Loraq:
    """A client of the owner alice."""
    return client_of("alice")


@pytest.fixture
def end_job(store: Store, storage: Storage, tmp_path: Path) -> Callable[..., JobRecord]:
    """Do what a worker does, as far as the API sees it: the job ends as asked, a successful one with files."""

    def end(job_id: str, to: Status = Status.SUCCEEDED, files: dict[str, bytes] | None = None) -> JobRecord:
        record = store.claim(job_id, worker="test-worker")
        assert record is not None
        if to is not Status.SUCCEEDED:
            failure = Failure(reason="nan_loss", message="The loss is NaN.") if to is Status.FAILED else None  # type: ignore[arg-type]
            return store.move(job_id, 1, to, failure)
        store.move(job_id, 1, Status.TRAINING)
        store.move(job_id, 1, Status.UPLOADING)
        folder = tmp_path / "committed" / job_id
        for name, content in (files or {"lora.safetensors": b"weights"}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        manifest = manifest_of(folder, job_id, 1)
        output = S3Uri.parse(record.output_uri)
        for file in manifest.files:
            storage.upload(folder / file.path, output / file.stored_as)
        raw = manifest.model_dump_json().encode()
        storage.write(output / own_manifest(1), raw)
        storage.write(output / MANIFEST_NAME, raw)
        store.commit(job_id, 1, hashlib.sha256(raw).hexdigest())
        return store.move(job_id, 1, Status.SUCCEEDED)

    return end
