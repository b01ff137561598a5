"""Who did what when is written with what was done, and holds no token."""

import json
import logging

import httpx
import pytest
from typer.testing import CliRunner

from api.auth import create_token, fingerprint_of
from api.cli import app
from api.client import Loraq
from api.client_errors import ApiError
from jobs import audit
from jobs.audit import Action, Actor, Note, noting
from jobs.record import JobRecord
from jobs.status import Status
from jobs.store import Store

pytestmark = pytest.mark.integration


def entries(store: Store) -> list[tuple[str, str, str]]:
    """Owner, action and subject, oldest first."""
    return [(each.owner, each.action.value, each.subject) for each in reversed(list(audit.read(store.redis)))]


@pytest.fixture
def operator(monkeypatch, settings):
    """Run a command of operators."""
    monkeypatch.setenv("LORAQ_REDIS_URL", settings.redis_url.get_secret_value())

    def run(*arguments: str):
        return CliRunner().invoke(app, arguments)

    return run


def test_what_is_done_over_the_api_is_written_down(loraq: Loraq, store: Store, make_spec, end_job, tmp_path) -> None:
    job = loraq.submit(make_spec())
    end_job(job.id)
    loraq.artifacts(job.id)
    other = loraq.submit(make_spec())
    loraq.cancel(other.id)
    again = loraq.retry(other.id)
    loraq.webhook_secret()
    (tmp_path / "cat.jpg").write_bytes(b"picture")
    dataset = loraq.upload_dataset(tmp_path)

    assert entries(store) == [
        ("alice", "submit", job.id),
        ("alice", "artifacts", job.id),
        ("alice", "submit", other.id),
        ("alice", "cancel", other.id),
        ("alice", "retry", again.id),
        ("alice", "webhook_secret", "alice"),
        ("alice", "dataset", dataset.uri),
    ]
    newest, *_ = audit.read(store.redis)
    assert newest.detail == {"files": 1, "size_bytes": 7}


def test_what_was_not_done_is_not_written(loraq: Loraq, client_of, store: Store, make_spec, end_job) -> None:
    job = loraq.submit(make_spec(), "a-key")
    end_job(job.id, Status.FAILED)
    before = entries(store)
    loraq.submit(job.spec, "a-key")  # a repeat
    loraq.cancel(job.id)  # of a job that has ended
    with pytest.raises(ApiError):
        client_of("bob").cancel(job.id)
    with pytest.raises(ApiError):
        loraq.artifacts(job.id)
    assert entries(store) == before


def test_the_entry_is_in_the_transaction_of_what_it_is_about(store: Store, make_spec, monkeypatch) -> None:
    job = store.submit(JobRecord.create("alice", make_spec()))

    def broken(*_: object, **__: object) -> None:
        raise ConnectionError("Redis went away in the middle")

    note = Note(Actor("alice"), Action.CANCEL)
    with monkeypatch.context() as patched:
        patched.setattr("redis.client.Pipeline.execute", broken)
        with pytest.raises(ConnectionError):
            store.request_cancel(job.id, also=note)
    assert entries(store) == []
    assert store.get(job.id).status is Status.QUEUED

    store.request_cancel(job.id, also=note)
    assert entries(store) == [("alice", "cancel", job.id)]


def test_each_entry_is_one_line_in_the_log_with_its_data(store: Store, make_spec, caplog) -> None:
    caplog.set_level(logging.INFO, "jobs.audit")
    new = JobRecord.create("alice", make_spec())
    with noting(Actor("alice", "0123456789ab"), Action.SUBMIT) as note:
        store.submit(new, also=note)
    [line] = caplog.records
    assert line.getMessage() == f"alice: submit {new.id}"
    assert vars(line)["audit"] == {"owner": "alice", "token": "0123456789ab", "action": "submit", "subject": new.id}


def test_an_entry_tells_which_token_and_never_the_token(url: str, store: Store, make_spec, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    token = create_token(store.redis, "alice", "laptop")
    with Loraq(url, token) as loraq:
        loraq.submit(make_spec())
        secret = loraq.webhook_secret()
    newest, *_ = audit.read(store.redis)
    assert newest.token == fingerprint_of(token)
    held = str(store.redis.xrange(audit.STREAM)) + caplog.text + str([vars(record) for record in caplog.records])
    assert token not in held
    assert token.removeprefix("lrq_") not in held
    assert secret not in held


def test_the_stream_is_capped(store: Store, monkeypatch) -> None:
    monkeypatch.setattr(audit, "MAX_ENTRIES", 100)
    for number in range(500):
        audit.write(store.redis, Actor("alice"), Action.DATASET, str(number))
    assert 100 <= store.redis.xlen(audit.STREAM) < 300
    newest, *_ = audit.read(store.redis)
    assert newest.subject == "499"


def test_entries_are_read_page_by_page_each_once(store: Store, monkeypatch) -> None:
    monkeypatch.setattr(audit, "PAGE", 7)
    for number in range(50):
        audit.write(store.redis, Actor("alice"), Action.DATASET, str(number))
    assert [each.subject for each in audit.read(store.redis)] == [str(number) for number in reversed(range(50))]


# -- the commands -----------------------------------------------------------------------------------------------------


def test_operators_read_it_with_filters(operator, loraq: Loraq, client_of, make_spec) -> None:
    mine, theirs = loraq.submit(make_spec()), client_of("bob").submit(make_spec())
    loraq.cancel(mine.id)

    def subjects(*filters: str) -> list[str]:
        result = operator("audit", "--json", *filters)
        assert result.exit_code == 0
        return [json.loads(line)["subject"] for line in result.stdout.splitlines()]

    assert subjects() == [mine.id, theirs.id, mine.id]
    assert subjects("--owner", "bob") == [theirs.id]
    assert subjects("--action", "cancel") == [mine.id]
    assert subjects("--subject", mine.id) == [mine.id, mine.id]
    assert subjects("--limit", "1") == [mine.id]
    assert subjects("--since", "2200-01-01") == []
    assert "cancel" in operator("audit").stdout


def test_a_token_is_listed_by_its_fingerprint_and_revoked_by_it(operator, url: str, store: Store) -> None:
    made = json.loads(operator("token", "create", "alice", "--name", "laptop", "--json").stdout)
    kept = create_token(store.redis, "alice", "server")

    [first, second] = [json.loads(line) for line in operator("token", "list", "--json").stdout.splitlines()]
    assert (first["owner"], first["name"], first["fingerprint"]) == ("alice", "laptop", made["fingerprint"])
    assert second["fingerprint"] == fingerprint_of(kept)
    shown = operator("token", "list").output
    assert made["fingerprint"] in shown
    assert made["token"] not in shown

    assert operator("token", "revoke", made["fingerprint"][:6]).exit_code == 0
    answers = [
        httpx.get(f"{url}/v1/jobs", headers={"Authorization": f"Bearer {token}"}).status_code
        for token in (made["token"], kept)
    ]
    assert answers == [401, 200]
    assert [(owner, action) for owner, action, _ in entries(store)] == [
        ("operator", "token_create"),
        ("operator", "token_revoke"),
    ]


@pytest.mark.parametrize("fingerprint", ["000000000000", "12345", "*", "zzzzzz", ""])
def test_a_fingerprint_that_names_no_single_token_revokes_none(operator, store: Store, fingerprint: str) -> None:
    create_token(store.redis, "alice")
    assert operator("token", "revoke", fingerprint).exit_code != 0
    assert len(operator("token", "list", "--json").stdout.splitlines()) == 1
    assert entries(store) == []


def test_a_fingerprint_that_several_tokens_share_revokes_none(operator, store: Store) -> None:
    for rest in ("1", "2"):
        key = "loraq:token:" + ("abcdef" + rest).ljust(64, "0")
        store.redis.set(key, '{"owner": "alice", "name": "", "created_at": "2026-11-24T00:00:00Z"}')
    result = operator("token", "revoke", "abcdef")
    assert result.exit_code == 3
    assert "2 tokens begin with abcdef" in result.output
    assert operator("token", "revoke", "abcdef1").exit_code == 0


def test_operators_without_redis_are_told_so(operator, monkeypatch) -> None:
    monkeypatch.setenv("LORAQ_REDIS_URL", "redis://127.0.0.1:1/0")
    for command in (["audit"], ["token", "list"], ["token", "revoke", "abcdef"], ["workers"]):
        result = operator(*command)
        assert result.exit_code == 4, command
        assert "Redis does not answer" in result.output
