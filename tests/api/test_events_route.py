"""Events as a stream and as a list: each once, in order, to the last one."""

import threading
from collections.abc import Callable

import httpx
import pytest

from api.client import Loraq
from api.event_stream import read_data
from api.routes import events as events_route
from api.schemas import JobEvent
from jobs import events
from jobs.record import JobRecord
from jobs.spec import JobSpec
from jobs.status import Status
from jobs.store import Store

pytestmark = pytest.mark.integration

MakeSpec = Callable[..., JobSpec]
EndJob = Callable[..., JobRecord]


def test_a_stream_brings_what_happens_and_ends_with_the_job(loraq: Loraq, make_spec: MakeSpec, end_job: EndJob) -> None:
    job_id = loraq.submit(make_spec()).id
    seen = loraq.events(job_id)
    assert next(seen).data == {"from": None, "to": "queued"}
    work = threading.Timer(0.2, end_job, (job_id,))
    work.start()
    assert [event.data["to"] for event in seen] == ["preparing", "training", "uploading", "succeeded"]
    work.join()


def test_going_on_behind_an_event_loses_and_repeats_nothing(
    loraq: Loraq, url: str, store: Store, make_spec: MakeSpec, end_job: EndJob, alice: dict[str, str]
) -> None:
    job_id = loraq.submit(make_spec()).id
    for step in range(20):
        events.append(store.redis, job_id, "step", 1, {"step": step})
    end_job(job_id)
    whole = list(loraq.events(job_id))
    for cut in range(len(whole)):
        assert _stream(alice, url, job_id, after=whole[cut].id) == whole[cut + 1 :]


def test_a_reader_who_is_cut_off_over_and_over_sees_each_event_once(
    loraq: Loraq, store: Store, make_spec: MakeSpec, end_job: EndJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = loraq.submit(make_spec()).id
    for step in range(10):
        events.append(store.redis, job_id, "step", 1, {"step": step})
    end_job(job_id)
    monkeypatch.setattr("api.client.sleep", lambda _: None)
    whole_stream = loraq._stream

    def cut_off_after_three(job_id: str, after: str):
        for count, event in enumerate(whole_stream(job_id, after)):
            if count == 3:
                return
            yield event

    monkeypatch.setattr(loraq, "_stream", cut_off_after_three)
    seen = [event.id for event in loraq.events(job_id)]
    assert seen == [event.id for event in events.read(store.redis, job_id)]


def test_a_stream_that_does_not_follow_ends_at_the_present(
    loraq: Loraq, url: str, make_spec: MakeSpec, alice: dict[str, str]
) -> None:
    job_id = loraq.submit(make_spec()).id
    assert [event.data["to"] for event in _stream(alice, url, job_id, query="?follow=false")] == ["queued"]


def test_there_is_nothing_more_behind_the_end(
    loraq: Loraq, url: str, make_spec: MakeSpec, end_job: EndJob, alice: dict[str, str]
) -> None:
    job_id = loraq.submit(make_spec()).id
    end_job(job_id)
    last = list(loraq.events(job_id))[-1]
    answer = httpx.get(f"{url}/v1/jobs/{job_id}/events", headers={**alice, "Last-Event-ID": last.id})
    assert answer.status_code == 204  # which tells a browser not to connect again
    assert list(loraq.events(job_id, after=last.id)) == []


def test_events_carry_their_id_name_time_and_attempt(
    loraq: Loraq, url: str, make_spec: MakeSpec, alice: dict[str, str]
) -> None:
    job_id = loraq.submit(make_spec()).id
    answer = httpx.get(f"{url}/v1/jobs/{job_id}/events?follow=false", headers=alice)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.splitlines()
    event = JobEvent.model_validate_json(next(read_data(lines)))
    assert f"id: {event.id}" in lines
    assert "event: status" in lines
    assert event.attempt == 0
    assert int(event.at.timestamp() * 1000) == int(event.id.partition("-")[0])


def test_a_list_for_those_who_accept_only_json(
    loraq: Loraq, url: str, store: Store, make_spec: MakeSpec, end_job: EndJob, alice: dict[str, str]
) -> None:
    job_id = loraq.submit(make_spec()).id
    end_job(job_id, Status.FAILED)
    headers = {**alice, "Accept": "application/json"}
    everything = httpx.get(f"{url}/v1/jobs/{job_id}/events", headers=headers).json()
    assert [event["data"]["to"] for event in everything] == ["queued", "preparing", "failed"]
    assert everything[-1]["data"]["reason"] == "nan_loss"
    headers["Last-Event-ID"] = everything[0]["id"]
    assert httpx.get(f"{url}/v1/jobs/{job_id}/events?limit=1", headers=headers).json() == [everything[1]]
    assert [event.id for event in loraq.events(job_id, follow=False)] == [event["id"] for event in everything]


@pytest.mark.parametrize("after", ["x", "1", "99999999999999999999-0", "1-1; drop"])
def test_a_last_event_id_that_is_none_is_refused(
    loraq: Loraq, url: str, make_spec: MakeSpec, after: str, alice: dict[str, str]
) -> None:
    job_id = loraq.submit(make_spec()).id
    answer = httpx.get(f"{url}/v1/jobs/{job_id}/events", headers={**alice, "Last-Event-ID": after})
    assert answer.status_code == 422


def test_a_quiet_stream_sends_heartbeats(
    loraq: Loraq, url: str, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, alice: dict[str, str]
) -> None:
    monkeypatch.setattr(events_route, "HEARTBEAT_S", 0.1)
    job_id = loraq.submit(make_spec()).id
    with httpx.stream("GET", f"{url}/v1/jobs/{job_id}/events", headers=alice) as stream:
        comments = (line for line in stream.iter_lines() if line.startswith(":"))
        assert [next(comments) for _ in range(2)]


def _stream(alice: dict[str, str], url: str, job_id: str, after: str = "0-0", query: str = "") -> list[JobEvent]:
    headers = {**alice, "Accept": "text/event-stream", "Last-Event-ID": after}
    answer = httpx.get(f"{url}/v1/jobs/{job_id}/events{query}", headers=headers, timeout=20)
    return [JobEvent.model_validate_json(data) for data in read_data(answer.text.splitlines())]
