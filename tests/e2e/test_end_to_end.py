"""The user's own words, done for real: `docker compose up`, submit, collect; then stopped, killed and scaled.

scripts/e2e runs it, because building two images takes minutes. Tests share one running system, in this order.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
import yaml

from jobs.status import Status
from tests.e2e.stack import ROOT, VERSION, DockerStack

pytestmark = [
    pytest.mark.skipif("LORAQ_E2E" not in os.environ, reason="builds images for minutes: scripts/e2e runs it"),
    pytest.mark.timeout(1500),
]

API_LIMIT_BYTES = 250_000_000
Weights = dict[str, bytes]


@pytest.fixture(scope="module")
def figures() -> Iterator[dict[str, float]]:
    """What was measured; printed at the end."""
    measured: dict[str, float] = {}
    yield measured
    print("\n" + "\n".join(f"{name}: {value:.0f}" for name, value in measured.items()))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, figures: dict[str, float]) -> Iterator[DockerStack]:
    """Both images built, everything up and healthy, the tiny base model in its bucket."""
    from worker.model.tiny import write_tiny_base  # here: collecting this file imports no torch

    stack = DockerStack(tmp_path_factory.mktemp("e2e"))
    base = write_tiny_base(stack.folder / "tiny", layout="single_file")["single_file"]
    try:
        begin = time.monotonic()
        stack.compose("build")
        figures["build s"] = time.monotonic() - begin
        begin = time.monotonic()
        stack.compose("up", "-d", "--wait", "--wait-timeout", "180")
        figures["from up to healthy s"] = time.monotonic() - begin
        command = ("exec", "-T", "api", "loraq", "add-model", "-", "--name", "tiny.safetensors")
        stack.compose(*command, stdin=base.read_bytes())
        yield stack
    finally:
        print(stack.compose("logs", "--no-color", "--tail", "30", "worker", "setup"))
        stack.remove()


@pytest.fixture(scope="module")
def spec(stack: DockerStack) -> Path:
    """A training of half a minute."""
    path = stack.folder / "spec.yaml"
    content = {
        "version": 1,
        "name": "end-to-end",
        "base_model": "s3://models/tiny.safetensors",
        "dataset": {"uri": "s3://datasets/filled-in-by-the-upload/"},
        "training": {"resolution": 64, "steps": 150, "seed": 7},
        "checkpoints": {"every_n_steps": 25},
        "output": {"uri": "s3://outputs/e2e/", "formats": ["kohya", "diffusers"]},
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def submit(stack: DockerStack, spec: Path):
    """Submits the training with eight photographs; gives the job's id."""

    def send() -> str:
        said = stack.loraq("submit", str(spec), "--dataset", str(ROOT / "jobs/examples/photos"), "--json")
        return json.loads(said)["id"]

    return send


@pytest.fixture(scope="module")
def undisturbed(stack: DockerStack, spec: Path, figures: dict[str, float]) -> Weights:
    """What the training gives when nothing happens: submitted, followed and pulled by one command."""
    target = stack.folder / "undisturbed"
    begin = time.monotonic()
    photos = str(ROOT / "jobs/examples/photos")
    stack.loraq("submit", str(spec), "--dataset", photos, "--pull", str(target))
    figures["submit to pulled s"] = time.monotonic() - begin
    return weights(target)


def weights(folder: Path) -> Weights:
    tensors = safetensors.numpy.load_file(folder / "lora.safetensors")
    return {name: tensor.tobytes() for name, tensor in tensors.items()}


def assert_same(stack: DockerStack, job: str, undisturbed: Weights) -> None:
    """The job's files are what its manifest says, and its weights those of the undisturbed run, to the bit."""
    target = stack.folder / job
    files = json.loads(stack.loraq("pull", job, "--to", str(target), "--json"))["files"]
    for file in files:
        assert hashlib.sha256(Path(file["path"]).read_bytes()).hexdigest() == file["sha256"]
    assert "lora.safetensors" in {Path(file["path"]).name for file in files}
    assert weights(target) == undisturbed


def test_everything_is_healthy(stack: DockerStack) -> None:
    health = {
        each["Config"]["Labels"]["com.docker.compose.service"]: each["State"]["Health"]["Status"]
        for each in stack.inspect(*stack.containers())
    }

    users = {
        service: stack.compose("exec", "-T", service, "id", "-u").strip()
        for service in ("api", "worker", "reaper", "redis")
    }

    assert health == dict.fromkeys(("redis", "store", "api", "reaper", "worker"), "healthy")
    assert (users["api"], users["worker"], users["reaper"]) == ("54321", "54322", "10001")
    assert users["redis"] != "0"


def test_the_api_s_image_is_small_and_both_say_what_they_are(stack: DockerStack, figures: dict[str, float]) -> None:
    api, worker = stack.inspect(f"loraq-api:{VERSION}", f"loraq-worker:{VERSION}")
    figures |= {"API image MB": api["Size"] / 1e6, "worker image MB (CPU torch)": worker["Size"] / 1e6}

    assert api["Size"] < API_LIMIT_BYTES
    for image in (api, worker):
        assert image["Config"]["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
        assert image["Config"]["User"] not in ("", "0", "root")
        assert "Healthcheck" in image["Config"]


def test_a_submission_from_outside_is_trained_and_collected(stack: DockerStack, submit, undisturbed) -> None:
    job = submit()
    ended = stack.until_ended(job)

    assert (ended.status, len(ended.attempts)) == (Status.SUCCEEDED, 1)
    assert_same(stack, job, undisturbed)


def test_the_last_command_of_the_readme_leaves_a_lora_in_this_folder(
    stack: DockerStack, spec: Path, undisturbed
) -> None:
    shutil.copytree(ROOT / "jobs/examples/photos", stack.folder / "photos")
    (line,) = re.findall(
        r"^    docker compose (run --rm loraq submit .*)$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    command = line.replace("jobs/examples/ginger-cat.yaml", spec.name).replace("PHOTOS", "photos")
    stack.compose(*command.replace("run", "run -T", 1).split())

    assert weights(stack.folder / command.split()[-1]) == undisturbed


def test_stopped_in_the_middle_it_goes_on_after_up(stack: DockerStack, submit, undisturbed) -> None:
    job = submit()
    stack.until_step(job, 30)
    stack.compose("stop")
    stack.compose("up", "-d", "--wait", "--wait-timeout", "180")
    ended = stack.until_ended(job)

    assert (ended.status, ended.attempts[0].outcome) == (Status.SUCCEEDED, "preempted")
    assert ended.attempts[-1].resumed_from_step >= 30
    assert_same(stack, job, undisturbed)


def test_a_killed_worker_costs_what_came_after_its_checkpoint(stack: DockerStack, submit, undisturbed) -> None:
    job = submit()
    stack.until_step(job, 60)
    stack.docker("kill", "--signal", "KILL", *stack.containers("worker"))
    stack.compose("up", "-d", "--wait", "--wait-timeout", "180")
    ended = stack.until_ended(job)

    assert (ended.status, ended.attempts[0].failure.reason) == (Status.SUCCEEDED, "worker_lost")
    assert ended.attempts[-1].resumed_from_step >= 25
    assert_same(stack, job, undisturbed)


def test_two_workers_train_at_once(stack: DockerStack, submit, undisturbed) -> None:
    stack.compose("up", "-d", "--wait", "--wait-timeout", "180", "--scale", "worker=2")
    jobs = [submit(), submit()]
    ended = [stack.until_ended(job) for job in jobs]
    first, second = (each.attempts[-1] for each in ended)

    assert [each.status for each in ended] == [Status.SUCCEEDED] * 2
    assert first.worker != second.worker
    assert first.started_at < second.ended_at
    assert second.started_at < first.ended_at
    for job in jobs:
        assert_same(stack, job, undisturbed)


def test_the_figures_of_api_and_worker_are_read_inside_and_nowhere_else(stack: DockerStack, undisturbed) -> None:
    api = stack.from_inside("http://api:9464/metrics")
    worker = stack.from_inside("http://worker:9464/metrics")
    published = {
        port for each in stack.inspect(*stack.containers()) for port in each["HostConfig"]["PortBindings"] or {}
    }

    assert re.search(r'^loraq_attempts_total{outcome="succeeded",reason=""} [1-9]', api, re.MULTILINE)
    assert re.search(r"^loraq_worker_info{.*} 1.0$", worker, re.MULTILINE)
    assert published == {"8000/tcp", "8333/tcp"}
    for value in stack.secrets.values():
        assert value not in api + worker


def test_prometheus_reads_them_by_the_configuration_that_the_profile_brings(stack: DockerStack, undisturbed) -> None:
    stack.compose("--profile", "monitoring", "up", "-d", "--build", "--wait", "--wait-timeout", "120", "prometheus")

    def ask(path: str) -> dict[str, Any]:
        return json.loads(stack.from_inside(f"http://prometheus:9090/api/v1/{path}"))["data"]

    deadline = time.monotonic() + 120
    targets = ask("targets")["activeTargets"]
    while {each["labels"]["job"] for each in targets if each["health"] == "up"} < {"api", "worker"}:
        assert time.monotonic() < deadline, targets
        time.sleep(1)
        targets = ask("targets")["activeTargets"]
    rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
    alerts = yaml.safe_load((ROOT / "docker/prometheus/alerts.yml").read_text())
    (ended,) = ask("query?query=sum(loraq_jobs_ended_total)")["result"]

    assert [rule["name"] for rule in rules] == [rule["alert"] for each in alerts["groups"] for rule in each["rules"]]
    assert float(ended["value"][1]) >= 1


def test_logs_are_json_and_a_worker_s_name_job_and_attempt(stack: DockerStack, submit) -> None:
    job = submit()
    stack.until_ended(job)
    lines = {service: [json.loads(line) for line in stack.logs(service)] for service in ("api", "reaper", "worker")}

    assert lines["api"]  # a reaper that has nothing to do says nothing
    for service, found in lines.items():
        assert all({"at", "level", "logger", "message"} <= line.keys() for line in found), service
    assert any(line.get("job_id") == job for line in lines["api"])
    of_job = [line for line in lines["worker"] if job in line["message"]]
    assert of_job
    assert {(line["job_id"], line["attempt"]) for line in of_job} == {(job, 1)}


def test_no_secret_shows_in_arguments_or_images(stack: DockerStack) -> None:
    values = list(stack.secrets.values())
    running = stack.inspect(*stack.containers())
    arguments = json.dumps([[each["Path"], each["Args"], each["Config"]["Cmd"]] for each in running])
    processes = "".join(stack.docker("top", each["Id"], "-eo", "pid,args") for each in running)
    images = [f"loraq-api:{VERSION}", f"loraq-worker:{VERSION}"]
    layers = "".join(stack.docker("history", "--no-trunc", image) for image in images)
    layers += json.dumps(stack.inspect(*images))

    assert [value for value in values if value in arguments + processes + layers] == []
    for image in images:
        there = "org.opencontainers.image.licenses"  # so that it shows that the search finds what is there
        assert stack.found_in_layers(image, [there, *values]) == [there]
        found = stack.docker(
            "run", "--rm", "--network", "none", image, "find", "/opt", "/data", "/tmp", "-name", ".env*"
        )
        assert found == ""


@pytest.mark.parametrize("image", ["api", "worker"])
def test_images_start_as_any_user_on_a_filesystem_they_only_read(stack: DockerStack, image: str) -> None:
    module = {"api": "api.app", "worker": "worker.trainer"}[image]
    as_anyone = ("--user", "54321:54321", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--network", "none")
    program = f"import {module}, os; print(os.getuid())"

    assert stack.docker("run", "--rm", *as_anyone, f"loraq-{image}:{VERSION}", "python", "-c", program) == "54321\n"


def test_a_worker_without_the_gpu_that_it_is_to_use_says_so(stack: DockerStack) -> None:
    command = ["docker", "run", "--rm", "--network", "none", "-e", "LORAQ_DEVICE=cuda", f"loraq-worker:{VERSION}"]
    ended = subprocess.run(command, capture_output=True, text=True)

    assert ended.returncode == 1
    said = json.loads(ended.stderr.splitlines()[-1])["message"]
    assert said.startswith("No job can be taken here. LORAQ_DEVICE is cuda, and the NVIDIA driver ")
    assert "Give this machine, or this container, one" in said


def test_a_worker_without_gpu_takes_no_job_and_says_why(stack: DockerStack, submit) -> None:
    stack.compose("stop", "worker")
    job = submit()
    ended = stack.try_compose(
        "run", "--rm", "-T", "-e", "LORAQ_DEVICE=auto", "worker", "python", "-m", "worker", "--once"
    )
    with stack.client() as loraq:
        waiting = loraq.get(job)
        loraq.cancel(job)

    assert ended.returncode == os.EX_CONFIG
    assert "This worker takes no job, because every job needs a GPU: the NVIDIA driver " in ended.stderr.decode()
    assert (waiting.status, waiting.attempts) == (Status.QUEUED, ())
