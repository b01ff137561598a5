"""The API as a real HTTP server, people with tokens, and jobs that end without a worker."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvicorn

from api.app import create_app
from api.auth import create_token
from api.client import Loraq
from api.servers import free_port
from jobs.manifest import MANIFEST_NAME, describe_folder
from jobs.record import Failure, JobRecord
from jobs.settings import Settings
from jobs.status import Status
from jobs.storage import Storage
from jobs.store import Store
from jobs.uri import S3Uri


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Serve the API with given settings until the test ends; gives its URL."""
    with ExitStack() as stack:

        def start(settings: Settings, storage: Storage | None = None) -> str:
            port = free_port()
            config = uvicorn.Config(
                create_app(settings, storage=storage),
                port=port,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=1,
            )
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, daemon=True)
            thread.start()

            def stop() -> None:
                server.should_exit = True
                thread.join(10)

            stack.callback(stop)
            deadline = time.monotonic() + 10
            while not server.started:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            return f"http://127.0.0.1:{port}"

        yield start


@pytest.fixture
def url(serve: Callable[..., str], settings: Settings, storage: Storage) -> str:
    """Where the API is."""
    return serve(settings, storage)


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
        folder = tmp_path / job_id
        for name, content in (files or {"lora.safetensors": b"weights"}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        manifest = describe_folder(folder, job_id, 1)
        output = S3Uri.parse(record.output_uri)
        for file in manifest.files:
            storage.upload(folder / file.path, output / file.path)
        storage.write(output / MANIFEST_NAME, manifest.model_dump_json().encode())
        return store.move(job_id, 1, Status.SUCCEEDED)

    return end
