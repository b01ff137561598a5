"""The servers of `loraq up` and of these tests: they keep what they hold, ask who comes, and never outlive us."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import AuthenticationError

from api.processes import Child, ChildFailed
from api.servers import RedisServer, S3Server, port_is_free
from jobs.errors import StorageDenied
from jobs.settings import Settings
from jobs.storage import Storage
from jobs.uri import S3Uri

pytestmark = pytest.mark.integration


def test_redis_keeps_what_it_acknowledged_even_when_killed(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "with space")
    with server, Redis.from_url(server.url) as redis:
        redis.set("key", "kept")
        # A killed process loses nothing that the kernel has; for a power cut, only this setting speaks.
        assert redis.config_get("appendfsync") == {"appendfsync": "always"}
        server.kill()
        server.start()
        assert redis.get("key") == b"kept"


def test_redis_asks_for_its_password(redis_server: RedisServer) -> None:
    with (
        Redis.from_url(redis_server.url.replace(redis_server.password, "wrong")) as redis,
        pytest.raises(AuthenticationError),
    ):
        redis.ping()


def test_s3_keeps_its_objects_as_plain_files(tmp_path: Path) -> None:
    server = S3Server(tmp_path / "s3", "some-key", "some-secret")
    with server:
        storage = Storage(_settings(server))
        storage.make_bucket("models")
        storage.write(S3Uri("models", "folder/file.txt"), b"content")
        assert (tmp_path / "s3" / "models" / "folder" / "file.txt").read_bytes() == b"content"
        server.kill()
        server.start()
        assert storage.read(S3Uri("models", "folder/file.txt")) == b"content"


def test_s3_refuses_other_credentials(s3_server: S3Server) -> None:
    settings = _settings(s3_server).model_copy(update={"s3_secret_access_key": SecretStr("wrong")})
    with pytest.raises(StorageDenied):
        Storage(settings).check("models")


def test_no_secret_shows_in_the_process_list(redis_server: RedisServer, s3_server: S3Server) -> None:
    for server, program in ((redis_server, "server"), (s3_server, "rclone")):
        assert server.child is not None
        shown = Path(f"/proc/{server.child.pid}/cmdline").read_text()
        assert program in shown
        assert redis_server.password not in shown
        assert s3_server.secret_access_key not in shown
    assert (redis_server.folder / "server.conf").stat().st_mode & 0o077 == 0


def test_servers_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = f"""
import pathlib, threading, time
from api.servers import RedisServer
server = RedisServer(pathlib.Path({str(tmp_path)!r}))
starter = threading.Thread(target=server.start)
starter.start()
starter.join()  # the thread that started it is gone: the server must not be
time.sleep(0.3)
server.child.check()
print(server.child.pid, server.port, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, port = map(int, parent.stdout.readline().split())
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while not port_is_free(port):
        assert time.monotonic() < deadline, f"process {pid} still listens"
        time.sleep(0.02)


def test_a_child_that_ends_early_says_why(tmp_path: Path) -> None:
    child = Child("Thing", [sys.executable, "-c", "print('no disk left'); raise SystemExit(3)"], tmp_path / "log")
    with pytest.raises(ChildFailed, match=r"(?s)Thing ended with exit code 3.*no disk left"):
        child.wait_until(lambda: False, timeout_s=10)


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    program = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    child = Child("Thing", [sys.executable, "-c", program], tmp_path / "log")
    child.wait_until(lambda: "up" in child.log.read_text(), timeout_s=10)
    child.stop(grace_s=0.1)
    assert child.exit_code == -signal.SIGKILL


def _settings(server: S3Server) -> Settings:
    return Settings.model_validate(
        {
            "s3_endpoint_url": server.endpoint_url,
            "s3_access_key_id": server.access_key_id,
            "s3_secret_access_key": server.secret_access_key,
        }
    )
