"""`loraq up` as a user runs it: a process that brings everything up, keeps the data, and leaves nothing behind."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from redis import Redis

from api.client import Loraq
from api.stack import Stack
from api.stack_state import ClientFile, FolderInUse, FolderLock, StackState
from jobs.spec import JobSpec
from jobs.storage import Storage
from jobs.uri import S3Uri

REPOSITORY = Path(__file__).parent.parent.parent

Up = Callable[..., tuple[subprocess.Popen[str], dict[str, Any]]]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """Run `loraq up --no-worker` in a process; gives it, and what it printed once it was up."""
    with ExitStack() as stack:

        def start(*arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
            command = [sys.executable, "-m", "api.cli", "up", "--no-worker", "--json", "--data", str(tmp_path / "data")]
            process = stack.enter_context(
                subprocess.Popen(
                    [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            return process, json.loads(process.stdout.readline() or "{}")

        yield start


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def _all_end(pids: list[int], within_s: float = 5) -> None:
    deadline = monotonic() + within_s
    while any(map(_alive, pids)):
        assert monotonic() < deadline, [pid for pid in pids if _alive(pid)]
        sleep(0.02)


def _pids(printed: dict[str, Any]) -> list[int]:
    return [part["pid"] for part in printed["parts"]]


def _client(folder: Path) -> Loraq:
    file = ClientFile.model_validate_json((folder / "client.json").read_bytes())
    return Loraq(file.url, file.token)


@pytest.mark.integration
def test_up_keeps_jobs_files_and_addresses_over_a_restart(
    up: Up, tmp_path: Path, photos: Path, make_spec: Callable[..., JobSpec]
) -> None:
    process, first = up()
    assert [part["name"] for part in first["parts"]] == ["Redis", "Object store", "API", "Reaper"]
    with _client(tmp_path / "data") as loraq:
        uri = loraq.upload_dataset(photos).uri
        job = loraq.submit(make_spec(dataset={"uri": uri}))
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    _all_end(_pids(first), within_s=0)

    process, second = up()
    assert [part["where"] for part in second["parts"]] == [part["where"] for part in first["parts"]]
    with _client(tmp_path / "data") as loraq:
        assert loraq.get(job.id) == job
    assert (tmp_path / "data" / "s3" / uri.removeprefix("s3://") / "chelsea.jpg").is_file()
    process.terminate()
    assert process.wait(20) == 0
    _all_end(_pids(second), within_s=0)


@pytest.mark.integration
def test_a_second_up_is_refused_and_nothing_outlives_the_first_when_killed(up: Up, tmp_path: Path) -> None:
    process, printed = up()
    second, refused = up()
    assert second.wait(20) == 2
    assert f"as process {process.pid}" in refused["error"]["detail"]
    assert all(map(_alive, _pids(printed)))

    process.kill()
    process.wait()
    _all_end(_pids(printed))
    FolderLock(tmp_path / "data").release()  # and the folder is free


@pytest.mark.integration
def test_a_part_that_ends_by_itself_ends_all_and_is_named(up: Up) -> None:
    process, printed = up()
    os.kill(next(part["pid"] for part in printed["parts"] if part["name"] == "Redis"), signal.SIGKILL)
    assert process.wait(30) == 1
    assert process.stdout is not None
    assert "Redis ended by SIGKILL" in json.loads(process.stdout.readline())["error"]["detail"]
    _all_end(_pids(printed), within_s=0)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A whole stack, with a worker and one folder open to file://."""
    folder = tmp_path_factory.mktemp("stack")
    with Stack(folder / "data", allow_folders=[folder]) as stack:
        yield stack
        pids = [part.pid for part in stack.parts]
    _all_end(pids, within_s=0)


@pytest.mark.integration
def test_all_parts_run_when_the_stack_is_up(running: Stack) -> None:
    assert [part.name for part in running.parts] == ["Redis", "Object store", "API", "Reaper", "Worker"]
    assert all(_alive(part.pid) for part in running.parts)


@pytest.mark.integration
def test_secrets_are_for_the_owner_of_the_folder_only(running: Stack) -> None:
    for name in ("state.json", "client.json", "redis/server.conf"):
        assert stat.S_IMODE((running.folder / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE(running.folder.stat().st_mode) == 0o700
    state = StackState.model_validate_json((running.folder / "state.json").read_bytes())
    shown = "".join(Path(f"/proc/{part.pid}/cmdline").read_text() for part in running.parts)
    for secret in (state.redis_password, state.s3_secret_access_key, state.s3_access_key_id, state.token):
        assert secret not in shown


@pytest.mark.integration
def test_a_program_can_use_the_stack_as_its_parts_do(running: Stack) -> None:
    assert running.settings.allowed_folders == (running.folder.parent,)
    assert running.settings.data_dir == running.folder / "worker"
    Storage(running.settings).write(S3Uri("models", "a"), b"x")
    with Redis.from_url(running.settings.redis_url.get_secret_value()) as redis:
        assert redis.ping()
    with running.client() as loraq:
        assert loraq.list().jobs == ()


def test_a_port_that_was_taken_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    first = StackState.load(tmp_path)
    assert StackState.load(tmp_path) == first
    with socket.socket() as other:
        other.bind(("127.0.0.1", first.redis_port))
        other.listen()
        second = StackState.load(tmp_path)
    assert second.redis_port != first.redis_port
    assert second == first.model_copy(update={"redis_port": second.redis_port})


def test_a_lock_is_held_once_and_can_be_let_go_of(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(FolderInUse, match=str(os.getpid())):
        FolderLock(tmp_path)
    lock.release()
    FolderLock(tmp_path).release()
