"""Submit, validate, list, show and cancel, over real HTTP."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from api.auth import create_token
from api.client import Loraq
from api.client_errors import ApiError
from jobs.record import JobRecord
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.spec_text import MAX_SPEC_BYTES, write_spec
from jobs.status import Status
from jobs.store import Store

pytestmark = pytest.mark.integration

MakeSpec = Callable[..., JobSpec]
MakeClient = Callable[[str], Loraq]
EndJob = Callable[..., JobRecord]


def test_a_submitted_job_is_queued_and_shown(
    loraq: Loraq, store: Store, make_spec: MakeSpec, alice: dict[str, str]
) -> None:
    spec = make_spec()
    job = loraq.submit(spec)
    assert job.status is Status.QUEUED
    assert job.owner == "alice"
    assert job.spec == spec
    assert job.output_uri == f"{spec.output.uri}{job.id}/"
    assert loraq.get(job.id) == job
    assert store.queues.tickets() == [f"{job.id}_1"]


@pytest.mark.parametrize("media_type", ["application/yaml", "text/yaml", "application/json"])
def test_a_spec_comes_as_yaml_or_json(alice: dict[str, str], url: str, make_spec: MakeSpec, media_type: str) -> None:
    spec = make_spec()
    body = spec.model_dump_json() if media_type == "application/json" else write_spec(spec)
    answer = _post(url, "/v1/jobs", alice, body, media_type)
    assert answer.status_code == 201
    assert JobSpec.model_validate(answer.json()["spec"]) == spec
    assert answer.headers["Location"] == f"/v1/jobs/{answer.json()['id']}"


def test_no_owner_can_name_another_s_objects(
    make_settings: Callable[..., Settings], serve: Callable[[Settings], str], store: Store, make_spec: MakeSpec
) -> None:
    defaults = {name: Settings.model_fields[name].default for name in ("readable", "writable")}
    url = serve(make_settings(**defaults))
    theirs = make_spec(
        dataset={"uri": "s3://datasets/bob/cats/"},
        lora={"init_from": "s3://outputs/bob/lora.safetensors"},
        output={"uri": "s3://outputs/bob/"},
    )
    ours = make_spec(dataset={"uri": "s3://datasets/alice/cats/"}, output={"uri": "s3://outputs/alice/"})
    with Loraq(url, create_token(store.redis, "alice")) as loraq:
        with pytest.raises(ApiError) as refused:
            loraq.submit(theirs)
        loraq.submit(ours)
    assert [problem.field for problem in refused.value.problems] == ["dataset.uri", "lora.init_from", "output.uri"]
    assert "s3://datasets/alice/" in refused.value.problems[0].message


def test_the_same_key_fifty_times_at_once_gives_one_job(
    loraq: Loraq, url: str, store: Store, make_spec: MakeSpec, alice: dict[str, str]
) -> None:
    body = make_spec().model_dump_json()
    with ThreadPoolExecutor(50) as pool:
        posts = [pool.submit(_post, url, "/v1/jobs", alice, body, key="the-same") for _ in range(50)]
        answers = [post.result() for post in posts]
    assert sorted(answer.status_code for answer in answers) == [200] * 49 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(store.queues.tickets()) == 1
    assert len(loraq.list().jobs) == 1


def test_the_same_key_with_another_spec_is_refused(loraq: Loraq, make_spec: MakeSpec) -> None:
    first = loraq.submit(make_spec(), idempotency_key="key")
    with pytest.raises(ApiError, match=first.id) as refused:
        loraq.submit(make_spec(name="other"), idempotency_key="key")
    assert (refused.value.status, refused.value.code) == (409, "idempotency_conflict")


def test_a_key_belongs_to_its_owner(client_of: MakeClient, make_spec: MakeSpec, alice: dict[str, str]) -> None:
    spec = make_spec()
    assert client_of("alice").submit(spec, "key").id != client_of("bob").submit(spec, "key").id


@pytest.mark.parametrize("key", ["", "with space", "x" * 201, "ümlaut".encode().decode("latin-1")])
def test_a_key_is_short_visible_ascii(alice: dict[str, str], url: str, make_spec: MakeSpec, key: str) -> None:
    headers = {"Idempotency-Key": key.encode("latin-1")}
    answer = _post(url, "/v1/jobs", alice, make_spec().model_dump_json(), headers=headers)
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["field"] == "Idempotency-Key"


def test_every_fault_is_named_at_once(loraq: Loraq, store: Store) -> None:
    spec = {
        "version": 1,
        "name": "Ginger Cat",
        "base_model": "http://example.com/model",
        "dataset": {"url": "s3://datasets/x/"},
        "lora": {"rank": 0},
        "output": {"uri": "s3://outputs/x/"},
    }
    with pytest.raises(ApiError) as refused:
        loraq.submit(spec)
    fields = {problem.field for problem in refused.value.problems}
    assert (refused.value.status, refused.value.code) == (422, "invalid_spec")
    assert fields == {"name", "base_model", "dataset.uri", "dataset.url", "lora.rank"}
    assert not store.queues.tickets()


def test_closed_buckets_are_named_together_with_what_is_not_carried_out(loraq: Loraq, make_spec: MakeSpec) -> None:
    data = make_spec().model_dump(mode="json") | {"base_model": "s3://secrets/model", "webhook": "https://[::1]/"}
    data["dataset"]["uri"] = "s3://datasets/../models/"
    data["memory"]["streamed_blocks"] = 60
    data["output"]["uri"] = "s3://elsewhere/x/"
    with pytest.raises(ApiError) as refused:
        loraq.validate(data)
    assert {problem.field for problem in refused.value.problems} == {
        "base_model",
        "dataset.uri",
        "memory.streamed_blocks",
        "output.uri",
        "webhook",
    }


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "[]",
        '{"version": 1, "version": 1}',
        '{"version": NaN}',
        "[" * 50_000,
        '{"\\ud800": 1}',
        '{"name": "\\ud800"}',
        '{"version": ' + "9" * 5000 + "}",
        "\x00",
    ],
    ids=["cut", "list", "twice", "nan", "deep", "surrogate-key", "surrogate", "huge-number", "nul"],
)
@pytest.mark.parametrize("media_type", ["application/json", "application/yaml"])
def test_whatever_is_no_spec_is_a_422(alice: dict[str, str], url: str, body: str, media_type: str) -> None:
    answer = _post(url, "/v1/jobs:validate", alice, body, media_type)
    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid_spec"
    assert answer.json()["problems"]


def test_a_body_is_read_no_further_than_the_limit(alice: dict[str, str], url: str) -> None:
    sent = 0

    def endless():
        nonlocal sent
        for _ in range(10_000):
            sent += 1 << 16
            yield b" " * (1 << 16)

    stated = _post(url, "/v1/jobs", alice, b" " * (MAX_SPEC_BYTES + 1))
    assert (stated.status_code, stated.json()["code"]) == (413, "body_too_large")
    try:
        chunked = _post(url, "/v1/jobs", alice, endless())
        assert chunked.status_code == 413
    except httpx.WriteError:
        pass  # the server hung up while we still sent
    assert sent < 100 << 20


@pytest.mark.parametrize("media_type", ["text/plain", "multipart/form-data", ""])
def test_other_media_types_are_refused(alice: dict[str, str], url: str, media_type: str) -> None:
    answer = _post(url, "/v1/jobs", alice, "version: 1", media_type)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


def test_validate_fills_in_and_makes_no_job(loraq: Loraq, make_spec: MakeSpec) -> None:
    data = make_spec().model_dump(mode="json") | {"preset": "16gb"}
    del data["lora"], data["training"]
    valid = loraq.validate(data)
    assert valid.spec.lora.rank == 8
    assert valid.spec.training.resolution == 768
    assert valid.trainable_parameters == 2 * 4_474_880  # the figure for rank 4, twice
    training = {"optimizer": {"learning_rate": 1e-5}}
    assert loraq.validate(data | {"preset": None, "fine_tuning": {}, "training": training}).trainable_parameters == (
        2_567_463_684
    )
    assert loraq.list().jobs == ()


def test_a_list_is_newest_first_in_pages_and_by_status(loraq: Loraq, make_spec: MakeSpec) -> None:
    ids = [loraq.submit(make_spec()).id for _ in range(5)]
    loraq.cancel(ids[2])
    first = loraq.list(limit=2)
    second = loraq.list(limit=2, cursor=first.next_cursor)
    third = loraq.list(limit=2, cursor=second.next_cursor)
    assert [job.id for page in (first, second, third) for job in page.jobs] == sorted(ids, reverse=True)
    assert third.next_cursor is None
    assert [job.id for job in loraq.list(status=Status.CANCELLED).jobs] == [ids[2]]


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "status=lost", "cursor=%2B"])
def test_a_bad_query_is_explained(alice: dict[str, str], url: str, query: str) -> None:
    answer = httpx.get(f"{url}/v1/jobs?{query}", headers=alice)
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["field"] == query.partition("=")[0]


def test_cancel_a_waiting_a_running_and_an_ended_job(
    loraq: Loraq, url: str, store: Store, make_spec: MakeSpec, end_job: EndJob, alice: dict[str, str]
) -> None:
    waiting, running, ended = (loraq.submit(make_spec()).id for _ in range(3))
    store.claim(running, worker="test-worker")
    end_job(ended)

    def cancel(job_id: str) -> tuple[int, str]:
        answer = httpx.post(f"{url}/v1/jobs/{job_id}/cancel", headers=alice)
        return answer.status_code, answer.json()["status"]

    for _ in range(2):  # a repeat changes nothing
        assert cancel(waiting) == (200, "cancelled")
        assert cancel(running) == (202, "preparing")
        assert cancel(ended) == (200, "succeeded")
    assert loraq.get(running).cancel_requested_at is not None


def test_another_owners_job_is_not_found(client_of: MakeClient, make_spec: MakeSpec, alice: dict[str, str]) -> None:
    alice, bob = client_of("alice"), client_of("bob")
    job_id = alice.submit(make_spec()).id
    for look in (bob.get, bob.cancel, bob.artifacts, lambda job_id: list(bob.events(job_id))):
        with pytest.raises(ApiError) as refused:
            look(job_id)
        assert (refused.value.status, refused.value.code) == (404, "job_not_found")
        with pytest.raises(ApiError) as unknown:
            look("20200101-000000000-0000000000")
        assert str(unknown.value).replace("20200101-000000000-0000000000", job_id) == str(refused.value)
    assert bob.list().jobs == ()
    assert alice.get(job_id).status is Status.QUEUED


def test_json_numbers_in_scientific_notation_are_numbers(loraq: Loraq, make_spec: MakeSpec) -> None:
    data = make_spec().model_dump(mode="json")
    text = json.dumps(data).replace('"learning_rate": 0.0001', '"learning_rate": 1e-4')
    assert "1e-4" in text
    assert loraq.validate(json.loads(text)).spec.training.optimizer.learning_rate == 1e-4


def _post(
    url: str,
    path: str,
    who: dict[str, str],
    body: object,
    media_type: str = "application/json",
    key: str | None = None,
    headers: dict[str, bytes] | None = None,
) -> httpx.Response:
    given = who | ({"Content-Type": media_type} if media_type else {})
    given |= {"Idempotency-Key": key} if key else {}
    return httpx.post(f"{url}{path}", content=body, headers=given | (headers or {}), timeout=30)  # type: ignore[arg-type]


def test_so_many_jobs_of_an_owner_may_wait_and_no_more(
    serve: Callable[[Settings], str], settings: Settings, store: Store, make_spec: MakeSpec, alice: dict[str, str]
) -> None:
    url = serve(settings.model_copy(update={"max_queued_per_owner": 2}))
    with (
        Loraq(url, alice["Authorization"].removeprefix("Bearer ")) as loraq,
        Loraq(url, create_token(store.redis, "bob")) as bob,
    ):
        first = loraq.submit(make_spec(name="first"), "a-key")
        loraq.submit(make_spec())
        answer = _post(url, "/v1/jobs", alice, make_spec().model_dump_json())
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_jobs")
        assert int(answer.headers["Retry-After"]) > 0
        assert loraq.submit(first.spec, "a-key").id == first.id  # a repeat is no new job
        assert bob.submit(make_spec()).status is Status.QUEUED
        loraq.cancel(first.id)
        assert loraq.submit(make_spec()).status is Status.QUEUED


def test_retry_makes_one_new_job_of_an_ended_one(
    loraq: Loraq, client_of: MakeClient, make_spec: MakeSpec, end_job: EndJob
) -> None:
    job = loraq.submit(make_spec())
    with pytest.raises(ApiError) as refused:
        loraq.retry(job.id)
    assert (refused.value.status, refused.value.code) == (409, "not_retryable")
    end_job(job.id, Status.FAILED)

    again = loraq.retry(job.id)

    assert (again.status, again.retry_of, again.spec) == (Status.QUEUED, (job.id,), job.spec)
    assert loraq.retry(job.id).id == again.id
    assert loraq.get(job.id).status is Status.FAILED
    with pytest.raises(ApiError, match="no job"):
        client_of("bob").retry(job.id)


def test_a_retry_may_change_the_steps_and_nothing_else(
    loraq: Loraq, url: str, alice: dict[str, str], make_spec: MakeSpec, end_job: EndJob
) -> None:
    job = loraq.submit(make_spec(training={"steps": 4}))
    end_job(job.id, Status.FAILED)

    longer = loraq.retry(job.id, steps=8)

    assert (longer.spec.training.steps, longer.retry_of) == (8, (job.id,))
    assert loraq.retry(job.id, steps=8).id == longer.id
    assert loraq.retry(job.id).id != longer.id
    for body, message in (
        ({"steps": 8, "batch_size": 2}, "batch_size cannot be changed by a retry"),
        ({"training": {"steps": 8}}, "training cannot be changed by a retry"),
        ({"steps": 0}, "greater than or equal to 1"),
    ):
        refused = httpx.post(f"{url}/v1/jobs/{job.id}/retry", json=body, headers=alice)
        assert refused.status_code == 422
        assert message in refused.text
