"""The command line against a real API: what it prints where, and how it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner, Result

from api.cli import app
from api.client import Loraq
from api.servers import free_port
from jobs import events
from jobs.record import JobRecord
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.spec_text import read_spec, write_spec
from jobs.status import Status
from jobs.storage import Storage
from jobs.store import Store
from jobs.uri import S3Uri

pytestmark = pytest.mark.integration

MakeSpec = Callable[..., JobSpec]
EndJob = Callable[..., JobRecord]
Run = Callable[..., Result]


@pytest.fixture
def run(url: str, alice: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run `loraq` as alice, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAQ_API_URL", url)
    monkeypatch.setenv("LORAQ_API_TOKEN", alice["Authorization"].removeprefix("Bearer "))
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture
def spec_file(tmp_path: Path, make_spec: MakeSpec) -> Path:
    """A spec that is in order."""
    path = tmp_path / "spec.yaml"
    path.write_text(write_spec(make_spec()))
    return path


def _json(result: Result) -> Any:
    """The one JSON value that is all of standard output."""
    return json.loads(result.stdout)


def test_submit_prints_the_id_and_only_that(run: Run, loraq: Loraq, spec_file: Path) -> None:
    result = run("submit", spec_file)
    assert result.exit_code == 0
    assert loraq.get(result.stdout.strip()).status is Status.QUEUED
    assert "is queued" in result.stderr


def test_submit_takes_standard_input_and_a_key(run: Run, loraq: Loraq, spec_file: Path) -> None:
    first, second = (_json(run("submit", spec_file, "--idempotency-key", "k", "--json")) for _ in range(2))
    assert first["id"] == second["id"]
    piped = CliRunner().invoke(app, ["submit", "-", "--json"], input=spec_file.read_bytes())
    assert _json(piped)["id"] != first["id"]


def test_submit_uploads_a_dataset_and_trains_on_it(
    run: Run, loraq: Loraq, storage: Storage, spec_file: Path, photos: Path
) -> None:
    result = run("submit", spec_file, "--dataset", photos)
    assert "8 pictures and 8 captions" in result.stderr
    assert "LICENSES.md" in result.stderr
    job = loraq.get(result.stdout.strip())
    assert len(storage.list(S3Uri.parse(job.spec.dataset.uri))) == 16


def test_submit_uploads_an_archive_as_it_is(
    run: Run, loraq: Loraq, storage: Storage, spec_file: Path, photos: Path, tmp_path: Path
) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "My Photos"), "gztar", photos))
    result = run("submit", spec_file, "--dataset", archive)
    assert "8 pictures and 8 captions" in result.stderr
    uri = S3Uri.parse(loraq.get(result.stdout.strip()).spec.dataset.uri)
    assert uri.key.endswith("/my-photos.tar.gz")
    assert storage.read(uri) == archive.read_bytes()


def test_submit_uploads_regularisation_pictures_beside_the_spec_s_own_dataset_or_another(
    run: Run, loraq: Loraq, storage: Storage, spec_file: Path, photos: Path, tmp_path: Path
) -> None:
    cats = tmp_path / "cats"
    cats.mkdir()
    for name in ("chelsea.jpg", "chelsea.txt"):
        (cats / name).write_bytes((photos / name).read_bytes())

    plain = loraq.get(run("submit", spec_file, "--regularisation", cats).stdout.strip())

    own = read_spec(spec_file.read_bytes()).dataset
    assert plain.spec.dataset.uri == own.uri
    assert plain.spec.dataset.regularisation
    assert len(storage.list(S3Uri.parse(plain.spec.dataset.regularisation.uri))) == 2

    data = yaml.safe_load(spec_file.read_text())
    data["dataset"]["regularisation"] = {"uri": "s3://datasets/none/", "weight": 0.5}
    (tmp_path / "weighed.yaml").write_text(yaml.safe_dump(data))
    both = run("submit", "weighed.yaml", "--dataset", photos, "--regularisation", cats)
    dataset = loraq.get(both.stdout.strip()).spec.dataset
    assert dataset.regularisation
    assert dataset.regularisation.weight == 0.5
    sizes = [len(storage.list(S3Uri.parse(uri))) for uri in (dataset.uri, dataset.regularisation.uri)]
    assert sizes == [16, 2]


def test_an_upload_goes_where_its_owner_alone_may_read(
    run: Run, serve: Callable, settings: Settings, spec_file: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = settings.model_copy(update={"readable": ("s3://datasets/{owner}/", "s3://models/")})
    monkeypatch.setenv("LORAQ_API_URL", serve(mine))
    submitted = run("submit", spec_file, "--dataset", photos, "--json")
    assert submitted.exit_code == 0, submitted.stderr
    assert _json(submitted)["spec"]["dataset"]["uri"].startswith("s3://datasets/alice/")


def test_nothing_is_uploaded_for_a_spec_at_fault(run: Run, storage: Storage, tmp_path: Path, photos: Path) -> None:
    before = len(storage.list(S3Uri("datasets", "")))
    (tmp_path / "spec.yaml").write_text("version: 1\nlora: {rank: 0}\n")
    result = run("submit", "spec.yaml", "--dataset", photos)
    assert result.exit_code == 2
    assert "lora.rank" in result.stderr
    assert "dataset.uri" not in result.stderr
    assert len(storage.list(S3Uri("datasets", ""))) == before


def test_validate_names_every_fault(run: Run, tmp_path: Path, spec_file: Path) -> None:
    good = run("validate", spec_file)
    assert good.exit_code == 0
    assert "4,474,880 trainable parameters" in good.stdout
    assert _json(run("validate", spec_file, "--json"))["valid"] is True
    (tmp_path / "bad.yaml").write_text(
        spec_file.read_text().replace("rank: 4", "rank: 0").replace("s3://outputs", "s3:")
    )
    bad = run("validate", "bad.yaml", "--json")
    assert bad.exit_code == 2
    assert {problem["field"] for problem in _json(bad)["error"]["problems"]} == {"lora.rank", "output.uri"}


@pytest.mark.parametrize("arguments", [["submit"], ["submit", "missing.yaml"], ["nothing"], ["list", "--status", "x"]])
def test_wrong_usage_is_2(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_list_and_show(run: Run, loraq: Loraq, make_spec: MakeSpec, end_job: EndJob) -> None:
    first, second = (loraq.submit(make_spec()).id for _ in range(2))
    end_job(first, Status.FAILED)
    assert [job["id"] for job in _json(run("list", "--json"))["jobs"]] == [second, first]
    failed = run("list", "--status", "failed")
    assert first in failed.stdout
    assert second not in failed.stdout
    shown = run("show", first)
    assert shown.exit_code == 0
    assert "nan_loss: The loss is NaN." in shown.stdout
    assert _json(run("show", first, "--json"))["failure"]["reason"] == "nan_loss"


def test_what_a_server_says_cannot_take_over_the_terminal(
    run: Run, loraq: Loraq, store: Store, make_spec: MakeSpec
) -> None:
    job_id = loraq.submit(make_spec()).id
    events.append(store.redis, job_id, "warning", 1, {"message": "\x1b]0;owned\x07 [red]x"})
    result = run("logs", job_id)
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout
    assert "[red]x" in result.stdout


def test_logs_end_at_the_present_or_with_the_job(run: Run, loraq: Loraq, make_spec: MakeSpec, end_job: EndJob) -> None:
    job_id = loraq.submit(make_spec()).id
    assert run("logs", job_id).stdout.count("\n") == 1
    work = threading.Timer(0.3, end_job, (job_id,))
    work.start()
    followed = run("logs", "-f", job_id, "--json")
    work.join()
    assert [json.loads(line)["data"]["to"] for line in followed.stdout.splitlines()][-1] == "succeeded"


@pytest.mark.parametrize(
    ("status", "code"), [(Status.SUCCEEDED, 0), (Status.FAILED, 1), (Status.CANCELLED, 5)], ids=str
)
def test_following_ends_as_the_job_does(
    run: Run, loraq: Loraq, make_spec: MakeSpec, end_job: EndJob, status: Status, code: int
) -> None:
    job_id = loraq.submit(make_spec()).id
    end_job(job_id, status)
    assert run("logs", "-f", job_id).exit_code == code


def test_submit_and_follow(run: Run, store: Store, spec_file: Path, end_job: EndJob) -> None:
    def work() -> None:
        while not (waiting := store.queues.tickets()):
            sleep(0.01)
        end_job(waiting[0].rpartition("_")[0], Status.FAILED)

    worker = threading.Thread(target=work)
    worker.start()
    result = run("submit", spec_file, "--follow")
    worker.join()
    assert result.exit_code == 1
    assert "The loss is NaN." in result.stdout


def test_cancel(run: Run, loraq: Loraq, make_spec: MakeSpec) -> None:
    job_id = loraq.submit(make_spec()).id
    assert "is cancelled" in run("cancel", job_id).stdout
    assert _json(run("cancel", job_id, "--json"))["status"] == "cancelled"


def test_pull(run: Run, loraq: Loraq, make_spec: MakeSpec, end_job: EndJob, tmp_path: Path) -> None:
    job_id = loraq.submit(make_spec()).id
    waiting = run("pull", job_id)
    assert waiting.exit_code == 3
    assert "is queued" in waiting.stderr
    end_job(job_id)
    assert "1 file fetched" in run("pull", job_id).stdout
    assert (tmp_path / job_id / "lora.safetensors").read_bytes() == b"weights"
    again = _json(run("pull", job_id, "--to", tmp_path / "elsewhere", "--json"))
    assert again["fetched"] == 1
    assert (tmp_path / "elsewhere" / "lora.safetensors").read_bytes() == b"weights"


def test_not_found_and_no_entry_are_3(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("show", "../jobs").exit_code == 3
    assert _json(run("show", "x", "--json"))["error"]["code"] == "job_not_found"
    monkeypatch.setenv("LORAQ_API_TOKEN", "lrq_wrong")
    assert run("list").exit_code == 3


def test_no_answer_is_4(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAQ_API_URL", f"http://127.0.0.1:{free_port()}")
    result = run("list")
    assert result.exit_code == 4
    assert "No answer from" in result.stderr
    assert "Traceback" not in result.output


def test_without_an_address_it_says_what_to_do(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORAQ_API_TOKEN")
    assert "LORAQ_API_TOKEN" in run("list").stderr
    monkeypatch.delenv("LORAQ_API_URL")
    result = run("list")
    assert result.exit_code == 2
    assert "loraq up" in result.stderr


def test_ctrl_c_leaves_the_job_running(run: Run, loraq: Loraq, make_spec: MakeSpec) -> None:
    job_id = loraq.submit(make_spec()).id
    command = [sys.executable, "-m", "api.cli", "logs", "-f", job_id]
    repository = Path(__file__).parent.parent.parent
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=repository, env=dict(os.environ)
    ) as following:
        assert following.stdout is not None
        assert "queued" in following.stdout.readline()
        following.send_signal(signal.SIGINT)
        _, said = following.communicate(timeout=20)
    assert following.returncode == 130
    assert f"loraq cancel {job_id}" in said
    assert loraq.get(job_id).status is Status.QUEUED


def test_an_operator_makes_a_token(run: Run, url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAQ_REDIS_URL", settings.redis_url.get_secret_value())
    token = run("token", "create", "bob").stdout.strip()
    assert httpx.get(f"{url}/v1/jobs", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    assert _json(run("token", "create", "bob", "--json"))["owner"] == "bob"
    assert run("token", "create", "Bob!").exit_code == 2
    monkeypatch.setenv("LORAQ_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    assert run("token", "create", "bob").exit_code == 4
