"""What Prometheus would see of a real API and a real worker, and what page, dashboard and alerts make of it."""

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from api.servers import free_port
from jobs.record import JobRecord
from jobs.spec import JobSpec
from jobs.status import Status
from tests.integration.conftest import worker_env
from worker.metrics import Cards

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
OWNER = "an-owner-nobody-may-see"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}

Families = dict[str, Metric]


def page(port: int) -> str:
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
    assert answer.headers["content-type"].startswith("text/plain")
    return answer.text


def scrape(port: int) -> Families:
    return {family.name: family for family in text_string_to_metric_families(page(port))}


def value(families: Families, sample: str, **labels: str) -> float:
    found = [
        each.value
        for family in families.values()
        for each in family.samples
        if each.name == sample and labels.items() <= each.labels.items()
    ]
    assert len(found) == 1, (sample, labels, found)
    return found[0]


def series(families: Families) -> set[str]:
    """Names by which queries ask for what is there."""
    return {name + suffix for name, family in families.items() for suffix in SUFFIXES.get(family.type, ("",))}


def series_with_samples(families: Families) -> set[str]:
    return {sample.name for family in families.values() for sample in family.samples}


def answers(port: int) -> bool:
    try:
        return bool(page(port))
    except httpx.HTTPError:
        return False


def wait_until(condition: Any, within_s: float = 150) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def scraped() -> dict[str, Any]:
    """What the first test of this module saw, for those that only read it."""
    return {}


@pytest.fixture
def api(settings) -> Iterator[tuple[int, int]]:
    """A real API; gives its port and that of its metrics."""
    port, metrics_port = free_port(), free_port()
    env = worker_env(settings.model_copy(update={"metrics_port": metrics_port}))
    process = subprocess.Popen([sys.executable, "-m", "api", "--port", str(port)], env=env, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).is_success
        except httpx.HTTPError:
            return False

    try:
        wait_until(answers)
        yield port, metrics_port
    finally:
        process.terminate()
        process.wait(20)


def test_a_job_shows_in_the_figures_of_the_api_and_of_its_worker(
    scraped, api, store, worker, bucket, make_spec, tmp_path
):
    def submit(spec: JobSpec) -> JobRecord:
        return store.submit(JobRecord.create(OWNER, spec))

    port, metrics_port = api
    job = submit(make_spec(dataset={"uri": bucket("metrics", 2)}, training={"steps": 150}))
    hopeless = submit(make_spec(dataset={"uri": "s3://datasets/nothing-is-here/"}))
    beyond = submit(make_spec(memory={"budget_gib": 48}))
    httpx.get(f"http://127.0.0.1:{port}/v1/jobs/{job.id}", trust_env=False)
    before = scrape(metrics_port)
    worker_port = free_port()
    worker(metrics_port=worker_port, worker_class="12gb", metrics_host="127.0.0.1")
    wait_until(lambda: answers(worker_port) and value(scrape(worker_port), "loraq_job_step") > 0)
    during, queue_during = scrape(worker_port), scrape(metrics_port)
    wait_until(lambda: store.get(job.id).status is Status.SUCCEEDED)
    wait_until(lambda: store.get(hopeless.id).status is Status.FAILED)
    wait_until(lambda: not value(scrape(worker_port), "loraq_worker_busy"))
    farm, own = scrape(metrics_port), scrape(worker_port)
    scraped |= {
        "families": farm | own | {"loraq_job_phase": during["loraq_job_phase"]},
        "text": page(metrics_port) + page(worker_port),
        "log": (tmp_path / "worker-0.log").read_text(),
        "jobs": [job, hopeless, beyond],
    }

    assert value(before, "loraq_jobs_waiting", needs="8gb") == 2
    assert value(before, "loraq_jobs_beyond_all_workers", needs="48gb") == 1
    assert value(before, "loraq_oldest_waiting_seconds", needs="48gb") < 60
    assert "loraq_attempts_total" not in series_with_samples(before)

    assert value(during, "loraq_worker_busy") == 1
    assert value(during, "loraq_job_steps") == 150
    assert 0 < value(during, "loraq_job_loss") < 100
    assert value(during, "loraq_job_phase", phase="training") == 1
    assert value(queue_during, "loraq_workers", gpu_class="12gb", state="busy") == 1
    assert value(queue_during, "loraq_jobs", status="training") == 1

    assert value(farm, "loraq_jobs_beyond_all_workers", needs=beyond.needs) == 1
    assert value(farm, "loraq_jobs", status="queued") == 1
    assert value(farm, "loraq_jobs", status="succeeded") == 1
    assert value(farm, "loraq_submissions_total") == 3
    assert value(farm, "loraq_attempts_total", outcome="succeeded", reason="") == 1
    assert value(farm, "loraq_attempts_total", outcome="failed", reason="dataset_invalid") == 1
    assert value(farm, "loraq_jobs_ended_total", status="succeeded") == 1
    assert value(farm, "loraq_jobs_ended_total", status="failed", reason="dataset_invalid") == 1
    assert value(farm, "loraq_wait_seconds_count", needs="8gb") == 2
    assert value(farm, "loraq_tickets", gpu_class="48gb") == 1
    assert value(farm, "loraq_workers", gpu_class="12gb", state="idle") == 1
    assert value(farm, "loraq_reaper_alive") == 0
    assert value(farm, "loraq_http_request_seconds_count", route="/v1/jobs/{job_id}", status="401") == 1
    assert value(own, "loraq_step_seconds_count") == 150
    assert value(own, "loraq_worker_attempts_total") == 2
    assert value(own, "loraq_cache_requests_total", result="miss") == 2
    assert value(own, "loraq_moved_bytes_total", direction="down") > 100_000
    assert value(own, "loraq_moved_bytes_total", direction="up") > 1000
    assert value(own, "loraq_worker_info", gpu_class="12gb") == 1
    assert math.isnan(value(own, "loraq_job_loss"))  # of no job any more


def test_the_figures_name_no_owner_no_job_and_no_secret(scraped, settings):
    secrets = [held.get_secret_value() for _, held in settings if hasattr(held, "get_secret_value")]
    private = [part for job in scraped["jobs"] for part in (job.id, job.spec.name, job.spec.dataset.uri)]

    assert "loraq_submissions_total 3.0" in scraped["text"]
    assert len(secrets) >= 2
    for each in [*secrets, *private, OWNER, "s3://", "redis://"]:
        assert each not in scraped["text"], each


def test_every_line_of_a_worker_s_log_is_json_and_names_its_job_and_attempt(scraped):
    lines = [json.loads(line) for line in scraped["log"].splitlines()]
    of_horse = [line for line in lines if line["logger"] in ("worker.attempt", "worker.downloads", "worker.lease")]
    of_horse = [line for line in of_horse if not line["message"].startswith("No job may begin now")]

    job, hopeless, _ = scraped["jobs"]
    assert {(line["job_id"], line["attempt"]) for line in of_horse} == {(job.id, 1), (hopeless.id, 1)}
    assert "job_id" not in lines[0]  # what came before it held one


def known(scraped) -> Families:
    cards = {family.name: family for family in Cards().collect()}  # a machine without GPU shows no samples of them
    return cards | scraped["families"]


def expressions() -> Iterator[str]:
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/loraq.json").read_text())
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            assert panel["targets"], panel["title"]
            yield from (target["expr"] for target in panel["targets"])
    alerts = yaml.safe_load((ROOT / "docker/prometheus/alerts.yml").read_text())
    yield from (rule["expr"] for group in alerts["groups"] for rule in group["rules"])


def test_every_panel_and_alert_asks_for_what_is_there(scraped):
    there = series(known(scraped))
    asked = {name for each in expressions() for name in re.findall(r"\bloraq_\w+", each)}

    assert asked - there == set()
    assert len(asked) > 25


def test_every_alert_says_what_is_wrong_and_nothing_else():
    alerts = yaml.safe_load((ROOT / "docker/prometheus/alerts.yml").read_text())
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]

    assert [rule["annotations"].keys() for rule in rules] == [{"summary"}] * len(rules)


def test_every_label_that_a_panel_asks_for_is_one_of_its_metric(scraped):
    labels: dict[str, set[str]] = {}
    for family in scraped["families"].values():
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    checked = 0
    for expression in expressions():
        names = re.findall(r"\bloraq_\w+", expression)
        if all(name in labels for name in names):
            by = [label.strip() for each in re.findall(r"by \(([^)]*)\)", expression) for label in each.split(",")]
            selected = re.findall(r"[{,](\w+)[=!]", expression)
            assert {*by, *selected} <= {"le"}.union(*(labels[name] for name in names)), expression
            checked += 1
    assert checked > 25


def test_the_page_lists_every_metric_and_no_other(scraped):
    page = (ROOT / "docs/metrics.md").read_text()
    rows = dict(re.findall(r"^\| `(loraq_\w+)` \| (\w+) \|", page, re.MULTILINE))
    there = {
        name + ("_total" if family.type == "counter" else ""): family.type
        for name, family in known(scraped).items()
        if name.startswith("loraq_")
    }

    assert rows == there


def test_while_redis_is_gone_the_api_says_so_and_still_shows_its_own(redis_server, api):
    _, metrics_port = api
    redis_server.stop()
    try:
        gone = scrape(metrics_port)
    finally:
        redis_server.start()

    assert value(gone, "loraq_redis_up") == 0
    assert "loraq_jobs" not in gone
    assert "loraq_http_request_seconds" in gone
    wait_until(lambda: value(scrape(metrics_port), "loraq_redis_up") == 1)
