"""`loraq doctor` on real servers that are not as they must be: each fault is found, named, and no other."""

import http.client
import http.server
import json
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.cli import app
from api.cli_output import ExitCode
from api.doctor.bucket_checks import look_at_buckets
from api.doctor.finding import Finding
from api.doctor.machine_checks import look_at_disk, look_at_gpu
from api.doctor.redis_checks import look_at_redis
from api.servers import RedisServer, S3Server, free_port
from jobs.settings import Settings

pytestmark = pytest.mark.integration


def found(findings: list[Finding], state: str) -> dict[str, str]:
    """Messages by subject and check, of those in `state`."""
    return {f"{each.subject}: {each.check}": each.message for each in findings if each.state == state}


# -- Redis ------------------------------------------------------------------------------------------------------------


class Misconfigured(RedisServer):
    """A Redis with other lines in its configuration."""

    lines = ""

    def _configuration(self) -> str:
        return super()._configuration() + self.lines


@pytest.fixture
def redis_with(tmp_path: Path) -> Iterator[Callable[[str], RedisServer]]:
    servers: list[RedisServer] = []

    def start(lines: str) -> RedisServer:
        server = Misconfigured(tmp_path / "redis")
        server.lines = lines
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


def test_a_redis_as_it_must_be_is_well(redis_server: RedisServer) -> None:
    findings = look_at_redis(redis_server.url)
    assert found(findings, "failed") == {}
    assert found(findings, "ok").keys() >= {"redis: round trip", "redis: clock", "redis: durable", "redis: memory"}
    assert set(found(findings, "warning")) == {"redis: reaper", "redis: workers"}


@pytest.mark.parametrize(
    ("lines", "state", "check", "says"),
    [
        ("appendonly no\n", "failed", "durable", "Set `appendonly yes`"),
        ("appendfsync everysec\n", "warning", "durable", "Set `appendfsync always`"),
        ('rename-command CONFIG ""\n', "warning", "durable", "CONFIG is refused"),
        ("maxmemory 100mb\nmaxmemory-policy allkeys-lru\n", "failed", "memory", "Set `maxmemory-policy noeviction`"),
        ("maxmemory-policy allkeys-lru\n", "warning", "memory", "Set `maxmemory-policy noeviction`"),
        ("maxmemory 1200kb\n", "warning", "memory", "Raise maxmemory"),
    ],
    ids=["no-aof", "everysec", "managed", "evicts", "would-evict", "nearly-full"],
)
def test_a_redis_that_forgets_is_named(redis_with, lines: str, state: str, check: str, says: str) -> None:
    findings = look_at_redis(redis_with(lines).url)
    assert says in found(findings, state)[f"redis: {check}"]
    assert set(found(findings, "failed")) <= {f"redis: {check}"}


def test_a_redis_that_is_not_there_or_takes_no_such_password_is_named(redis_server: RedisServer) -> None:
    wrong = redis_server.url.replace(redis_server.password, "wrong-password")
    for url in (wrong, f"redis://:secret-word@127.0.0.1:{free_port()}/0", "no-url"):
        [finding] = look_at_redis(url)
        assert (finding.check, finding.state) == ("reachable", "failed")
        assert "LORAQ_REDIS_URL" in finding.message
        assert "wrong-password" not in finding.message
        assert "secret-word" not in finding.message


@pytest.mark.parametrize(("ahead_s", "state"), [(0.0, "ok"), (5.0, "warning"), (-3600.0, "failed")])
def test_a_clock_that_is_off_is_named(redis_server: RedisServer, settings: Settings, ahead_s: float, state) -> None:
    def clock() -> float:
        return time.time() + ahead_s

    assert "redis: clock" in found(look_at_redis(redis_server.url, clock), state)
    assert "object store: clock" in found(look_at_buckets(settings, clock), state)


# -- the object store -------------------------------------------------------------------------------------------------


def test_a_store_as_it_must_be_is_well_and_nothing_is_left(settings: Settings, s3_server: S3Server) -> None:
    findings = look_at_buckets(settings)
    assert {each.state for each in findings} == {"ok"}
    assert len([each for each in findings if each.subject == "bucket outputs"]) == 10
    assert [path for path in s3_server.folder.rglob("*") if "loraq-doctor" in str(path) and path.is_file()] == []


def test_a_store_that_is_not_there_is_named_once_and_quickly(make_settings) -> None:
    begin = time.monotonic()
    [finding] = look_at_buckets(make_settings(s3_endpoint_url=f"http://127.0.0.1:{free_port()}"))
    assert finding.state == "failed"
    assert "LORAQ_S3_ENDPOINT_URL" in finding.message
    assert time.monotonic() - begin < 5


def test_a_wrong_secret_is_named_for_every_bucket(make_settings) -> None:
    findings = look_at_buckets(make_settings(s3_secret_access_key="wrong-secret"))
    failed = found(findings, "failed")
    assert set(failed) == {f"bucket {bucket}: listing" for bucket in ("datasets", "models", "outputs")}
    assert all("LORAQ_S3_ACCESS_KEY_ID" in message and "wrong-secret" not in message for message in failed.values())


def test_a_bucket_that_is_not_there_is_named_and_the_others_are_well(make_settings) -> None:
    findings = look_at_buckets(
        make_settings(
            readable=(
                "s3://datasets/",
                "s3://nowhere/",
            ),
            writable=(),
        )
    )
    assert set(found(findings, "failed")) == {"bucket nowhere: listing"}
    assert "Make it" in found(findings, "failed")["bucket nowhere: listing"]
    assert "bucket datasets: put" in found(findings, "ok")


def test_a_public_endpoint_that_leads_nowhere_is_named(make_settings) -> None:
    public = f"http://127.0.0.1:{free_port()}"
    findings = look_at_buckets(make_settings(readable=("s3://outputs/",), writable=(), s3_public_endpoint_url=public))
    failed = found(findings, "failed")
    assert set(failed) == {"bucket outputs: presigned get", "bucket outputs: presigned put"}
    assert all("LORAQ_S3_PUBLIC_ENDPOINT_URL" in message for message in failed.values())
    assert "Signature" not in str(failed)


Refuse = Callable[[str, str, http.client.HTTPMessage], int | None]


@contextmanager
def before(
    server: S3Server,
    refuse: Refuse = lambda method, path, headers: None,
    spoil: Callable[[str, bytes], bytes] = lambda path, content: content,
) -> Iterator[str]:
    """A server before the real one: it answers with the status that `refuse` gives, or spoils what is read."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if status := refuse(self.command, self.path, self.headers):
                self.answer(status, [], b"")
                return
            headers = {name: value for name, value in self.headers.items() if name != "Expect"}
            with closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                self.answer(answer.status, answer.getheaders(), spoil(self.path, answer.read()))

        def answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}"
    finally:
        proxy.shutdown()
        proxy.server_close()


def test_a_bucket_that_may_only_be_read_is_a_warning_unless_datasets_go_there(make_settings, s3_server) -> None:
    with before(s3_server, refuse=lambda method, path, headers: 403 if method == "PUT" else None) as url:
        findings = look_at_buckets(
            make_settings(
                readable=(
                    "s3://datasets/",
                    "s3://models/",
                ),
                writable=(),
                s3_endpoint_url=url,
            )
        )
    assert set(found(findings, "failed")) == {"bucket datasets: put"}
    assert set(found(findings, "warning")) == {"bucket models: put"}


@pytest.mark.parametrize(
    ("refuse", "checks"),
    [
        (lambda method, path, headers: 501 if "uploads" in path and method == "POST" else None, {"multipart"}),
        (lambda method, path, headers: 501 if "Range" in headers else None, {"range"}),
        (lambda method, path, headers: 403 if method == "DELETE" else None, {"delete", "nothing left over"}),
        (lambda method, path, headers: 200 if headers.get("Content-Length") == "2000" else None, {"presigned put"}),
    ],
    ids=["no-multipart", "no-range", "no-delete", "any-size"],
)
def test_what_a_store_does_not_do_is_named(make_settings, s3_server, refuse: Refuse, checks: set[str]) -> None:
    with before(s3_server, refuse) as url:
        findings = look_at_buckets(make_settings(readable=("s3://outputs/",), writable=(), s3_endpoint_url=url))
    assert set(found(findings, "failed")) == {f"bucket outputs: {check}" for check in checks}
    shutil.rmtree(s3_server.folder / "outputs" / "loraq-doctor", ignore_errors=True)


def test_a_store_that_gives_back_other_bytes_is_named(make_settings, s3_server) -> None:
    with before(s3_server, spoil=lambda path, content: content.replace(content[:1], b"?")) as url:
        findings = look_at_buckets(make_settings(readable=("s3://outputs/",), writable=(), s3_endpoint_url=url))
    assert found(findings, "failed").keys() >= {"bucket outputs: listing"}
    with before(s3_server, spoil=lambda path, content: content[::-1] if "/small" in path else content) as url:
        findings = look_at_buckets(make_settings(readable=("s3://outputs/",), writable=(), s3_endpoint_url=url))
    assert set(found(findings, "failed")) == {f"bucket outputs: {check}" for check in ("get", "range", "presigned get")}


# -- this machine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "state", "says"),
    [
        ("echo 'NVIDIA H100, 81559 MiB, 570.1'", "ok", "NVIDIA H100"),
        ("echo 'NVIDIA-SMI has failed'; exit 9", "failed", "ended with 9: NVIDIA-SMI has failed"),
        ("true", "failed", "lists no GPU"),
    ],
)
def test_what_nvidia_smi_says_is_told(tmp_path: Path, monkeypatch, script: str, state: str, says: str) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    [finding] = look_at_gpu()
    assert finding.state == state
    assert says in finding.message


def test_no_gpu_is_said_and_is_no_fault(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [each.state for each in look_at_gpu()] == ["skipped"]


def test_a_folder_without_room_or_rights_is_named(tmp_path: Path, monkeypatch) -> None:
    assert [each.state for each in look_at_disk(tmp_path / "new", 0.001)] == ["ok"]
    assert [each.state for each in look_at_disk(tmp_path, 1e9)] == ["warning"]
    (tmp_path / "file").write_bytes(b"")
    [finding] = look_at_disk(tmp_path / "file" / "below", 1)
    assert finding.state == "failed"
    assert "LORAQ_DATA_DIR" in finding.message
    monkeypatch.setattr("api.doctor.machine_checks.ROOM_FAILED_GIB", 1e9)
    assert [each.state for each in look_at_disk(tmp_path, 1)] == ["failed"]


# -- the command ------------------------------------------------------------------------------------------------------


def run(monkeypatch, settings: Settings, *arguments: str, **changed: str):
    secret = settings.s3_secret_access_key
    key = settings.s3_access_key_id
    assert secret is not None
    assert key is not None
    env = {
        "LORAQ_REDIS_URL": settings.redis_url.get_secret_value(),
        "LORAQ_S3_ENDPOINT_URL": str(settings.s3_endpoint_url),
        "LORAQ_S3_ACCESS_KEY_ID": key.get_secret_value(),
        "LORAQ_S3_SECRET_ACCESS_KEY": secret.get_secret_value(),
        "LORAQ_DATA_DIR": str(settings.data_dir),
        "LORAQ_CACHE_MAX_GIB": "0.001",
    }
    for name, value in (env | changed).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("api.doctor.machine_checks.ROOM_FAILED_GIB", 0.001)
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_the_command_ends_well_if_nothing_failed(monkeypatch, settings: Settings) -> None:
    result = run(monkeypatch, settings)
    assert result.exit_code == ExitCode.OK, result.output
    assert "ok       bucket outputs: listing, put, get, range, multipart, presigned get, presigned put" in result.stdout
    as_json = run(monkeypatch, settings, "--json")
    assert all(Finding.model_validate(json.loads(line)) for line in as_json.stdout.splitlines())


def test_the_command_ends_with_an_error_if_anything_failed(monkeypatch, settings: Settings) -> None:
    result = run(monkeypatch, settings, LORAQ_S3_SECRET_ACCESS_KEY="wrong-secret")
    assert result.exit_code == ExitCode.UNAVAILABLE
    assert "failed   bucket outputs: listing" in result.stdout
    assert "wrong-secret" not in result.output
    assert settings.redis_url.get_secret_value().split("@")[0] not in result.output


def test_settings_that_cannot_be_are_a_finding_too(monkeypatch, settings: Settings) -> None:
    result = run(monkeypatch, settings, LORAQ_LEASE_S="-1")
    assert result.exit_code == ExitCode.UNAVAILABLE
    assert "LORAQ_LEASE_S" in result.stdout
