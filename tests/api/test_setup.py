"""What a new installation needs is done once, and models arrive whole or not at all."""

import hashlib
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from redis import Redis
from typer.testing import CliRunner

from api.auth import find_fingerprint, find_token, fingerprint_of
from api.base_models import ModelNotBrought, bring
from api.cli import app
from api.setup import let_in, make_buckets
from jobs.errors import ObjectNotFound
from jobs.settings import Settings
from jobs.storage import Storage
from jobs.uri import S3Uri
from tests.integration.conftest import worker_env

pytestmark = pytest.mark.integration

CONTENT = secrets.token_bytes(20 << 20)  # more than one part of an upload
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def name() -> str:
    return f"{secrets.token_hex(4)}.safetensors"


@pytest.fixture
def web() -> Iterator[Callable[..., str]]:
    """Serves CONTENT; breaks off after each `breaks_after` bytes, or answers with `status`. Gives the address."""
    servers: list[ThreadingHTTPServer] = []

    def serve(breaks_after: int | None = None, status: int | None = None) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
                rest = CONTENT[start:]
                self.send_response(status or 206)
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                self.wfile.write(rest[:breaks_after])

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def nobody(_count: int) -> None:
    pass


def test_a_download_that_breaks_off_goes_on_and_arrives_whole(web, storage: Storage, name: str) -> None:
    came: list[int] = []
    uri, brought = bring(f"{web(breaks_after=9 << 20)}/x/{name}#sha256={DIGEST}", "models", storage, came.append)

    assert (str(uri), brought) == (f"s3://models/{name}", True)
    assert storage.sha256(uri) == DIGEST
    assert sum(came) == len(CONTENT)


def test_what_is_there_is_not_fetched_again(web, storage: Storage, name: str) -> None:
    storage.write(S3Uri("models", name), b"mine")

    assert bring(f"{web(status=404)}/{name}", "models", storage, nobody) == (S3Uri("models", name), False)


@pytest.mark.parametrize("source", ["url", "file"])
def test_another_digest_leaves_nothing(web, storage: Storage, name: str, tmp_path: Path, source: str) -> None:
    (tmp_path / name).write_bytes(CONTENT)
    place = f"{web()}/{name}" if source == "url" else str(tmp_path / name)

    with pytest.raises(ModelNotBrought, match=DIGEST):
        bring(f"{place}#sha256={'0' * 64}", "models", storage, nobody)
    with pytest.raises(ObjectNotFound):
        storage.stat(S3Uri("models", name))


def test_an_address_that_is_wrong_is_said(web, storage: Storage, name: str) -> None:
    with pytest.raises(ModelNotBrought, match="answered 404"):
        bring(f"{web(status=404)}/{name}", "models", storage, nobody)


@pytest.mark.parametrize("source", ["-", "/nowhere/model.ckpt", "https://example.com/"])
def test_what_has_no_name_of_a_base_model_is_refused(storage: Storage, source: str) -> None:
    with pytest.raises(ModelNotBrought, match="safetensors"):
        bring(source, "models", storage, nobody)


def test_add_model_takes_a_file_and_standard_input(
    settings: Settings, storage: Storage, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"weights")
    for key, value in worker_env(settings).items():
        monkeypatch.setenv(key, value)
    by_file = CliRunner().invoke(app, ["add-model", str(tmp_path / name)])
    command = [sys.executable, "-m", "api.cli", "add-model", "-", "--name", f"in-{name}"]
    by_input = subprocess.run(command, input=b"weights", env=dict(os.environ), capture_output=True)

    assert (by_file.exit_code, by_input.returncode) == (0, 0), by_input.stderr
    assert by_file.stdout == f"s3://models/{name}\n"
    assert storage.read(S3Uri("models", f"in-{name}")) == b"weights"


def test_the_first_token_opens_and_once_revoked_stays_out(settings: Settings) -> None:
    token = f"lrq_{secrets.token_urlsafe(32)}"
    with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
        assert let_in(redis, token, "me")
        holder = find_token(redis, token)
        assert not let_in(redis, token, "me")
        redis.delete(find_fingerprint(redis, fingerprint_of(token))[0])

        assert holder is not None
        assert holder.owner == "me"
        assert not let_in(redis, token, "me")
        assert find_token(redis, token) is None


def test_every_bucket_that_jobs_use_is_made(make_settings, storage: Storage) -> None:
    bucket = f"new-{secrets.token_hex(4)}"
    settings = make_settings(datasets_bucket=bucket)
    make_buckets(storage, settings)
    make_buckets(storage, settings)

    storage.check(bucket)


def test_run_as_compose_runs_it(settings: Settings, storage: Storage, web, name: str) -> None:
    token = f"lrq_{secrets.token_urlsafe(32)}"
    env = worker_env(settings) | {"LORAQ_API_TOKEN": token, "LORAQ_BASE_MODELS": f"{web()}/{name}#sha256={DIGEST}"}
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-m", "api.setup"], env=env, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr

    assert token not in ended.stderr
    with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
        assert find_token(redis, token) is not None
    assert storage.sha256(S3Uri("models", name)) == DIGEST
