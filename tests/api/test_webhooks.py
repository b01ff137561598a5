"""An owner is told of a job's end by a signed message, whatever the receiver does, and nothing waits for it."""

import http.server
import json
import logging
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
import trustme
from standardwebhooks import Webhook, WebhookVerificationError

from api.auth import create_token
from api.client import Loraq
from api.client_errors import ApiError
from api.public_address import Allowed
from api.servers import free_port
from api.webhook_sender import PARALLEL_PER_OWNER, WebhookSender
from jobs import webhooks
from jobs.logs import set_up_logging
from jobs.record import JobRecord
from jobs.settings import Settings
from jobs.status import Status
from jobs.store import Store

pytestmark = pytest.mark.integration

HERE = Allowed(["127.0.0.1"])


@dataclass
class Receiver:
    """A real HTTP server that keeps what it was sent."""

    port: int = field(default_factory=free_port)
    statuses: list[int] = field(default_factory=list)  # of the answers to come; 200 when there are no more
    redirect_to: str = "/elsewhere"
    delay_s: float = 0.0
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)  # path, headers, body
    began: int = 0
    tls: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks?key=in-the-url"

    @contextmanager
    def running(self) -> Iterator[None]:
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.began += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(receiver.delay_s)
                receiver.got.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                self.send_header("Location", receiver.redirect_to)
                self.end_headers()

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # a sender that was killed

        server = Server(("127.0.0.1", self.port), Handler)
        if self.tls:
            server.socket = self.tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that runs, and takes what comes."""
    one = Receiver()
    with one.running():
        yield one


@pytest.fixture
def send(store: Store) -> Iterator[Callable[..., None]]:
    """Run a sender of one's own until the test ends."""
    stop = threading.Event()
    with ExitStack() as stack:
        stack.callback(stop.set)

        def start(allowed: Allowed = HERE, **options: object) -> None:
            sender = WebhookSender(store, allowed, **{"first_wait_s": 0.1, "every_s": 0.02, **options})  # type: ignore[arg-type]
            thread = threading.Thread(target=sender.run, args=(stop,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(stop.set)  # before it is joined

        yield start


@pytest.fixture
def ended(store: Store, make_spec: Callable) -> Callable[..., JobRecord]:
    """A job that has ended, and whose owner wants to know."""

    def end(webhook: str | None, owner: str = "alice") -> JobRecord:
        record = store.submit(JobRecord.create(owner, make_spec(webhook=webhook)))
        return store.request_cancel(record.id)

    return end


def until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def state(store: Store, job: JobRecord) -> str:
    delivery = webhooks.delivery(store.redis, job.id)
    assert delivery is not None
    return delivery.state


def outcome(store: Store, job: JobRecord) -> str:
    delivery = webhooks.delivery(store.redis, job.id)
    return (delivery and delivery.last_outcome) or ""


# -- what comes -------------------------------------------------------------------------------------------------------


def test_the_message_is_signed_and_says_how_the_job_ended(store, receiver, send, loraq, make_spec, end_job) -> None:
    job = store.submit(JobRecord.create("alice", make_spec(webhook=receiver.url)))
    end_job(job.id)

    send()
    until(lambda: state(store, job) == "delivered")

    [(path, headers, body)] = receiver.got
    assert path == "/hooks?key=in-the-url"
    assert headers["host"] == f"127.0.0.1:{receiver.port}"
    assert headers["webhook-id"] == job.id
    told = Webhook(loraq.webhook_secret()).verify(body, headers)
    assert (told["type"], told["data"]["id"], told["data"]["status"]) == ("job.succeeded", job.id, "succeeded")
    assert told["timestamp"] == store.get(job.id).updated_at.isoformat()
    with pytest.raises(WebhookVerificationError):
        Webhook(loraq.webhook_secret()).verify(body.replace(b"succeeded", b"failed"), headers)
    shown = loraq.get(job.id).webhook
    assert shown is not None
    assert (shown.state, shown.tries, shown.last_outcome) == ("delivered", 1, "The receiver took it (200).")


@pytest.mark.parametrize(("to", "kind"), [(Status.FAILED, "job.failed"), (Status.CANCELLED, "job.cancelled")])
def test_every_end_is_told_once(store, receiver, send, make_spec, end_job, to, kind) -> None:
    job = store.submit(JobRecord.create("alice", make_spec(webhook=receiver.url)))
    end_job(job.id, to)

    send()
    until(lambda: state(store, job) == "delivered")
    store.request_cancel(job.id)  # of a job that has ended
    time.sleep(0.2)

    assert [json.loads(body)["type"] for _, _, body in receiver.got] == [kind]


def test_a_job_that_has_not_ended_or_wants_no_webhook_sends_none(store, receiver, ended, make_spec) -> None:
    waiting = store.submit(JobRecord.create("alice", make_spec(webhook=receiver.url)))
    ended(webhook=None)
    assert store.redis.zcard(webhooks.OUTBOX) == 0
    assert webhooks.delivery(store.redis, waiting.id) is None


def test_the_message_lies_in_the_outbox_in_the_transaction_that_ends_the_job(store, ended) -> None:
    pipelines = []
    original = store.redis.pipeline

    def watched(*args: object, **options: object):
        pipeline = original(*args, **options)
        execute = pipeline.execute

        def noted(*a: object):
            pipelines.append([command[0][0] + " " + str(command[0][1]) for command in pipeline.command_stack])
            return execute(*a)

        pipeline.execute = noted
        return pipeline

    store.redis.pipeline = watched
    job = ended("https://example.com/")
    [end] = [commands for commands in pipelines if f"SET loraq:webhook:{job.id}" in commands]
    assert f"SET loraq:job:{job.id}" in end
    assert f"ZADD {webhooks.OUTBOX}" in end


# -- when it does not work --------------------------------------------------------------------------------------------


def test_a_receiver_that_was_down_is_told_when_it_is_up(store, ended, send) -> None:
    receiver = Receiver()
    job = ended(receiver.url)
    send()
    until(lambda: "takes no connection" in outcome(store, job))
    with receiver.running():
        until(lambda: state(store, job) == "delivered")
    assert len(receiver.got) == 1


def test_errors_are_answered_by_another_try_with_the_same_id_and_body(store, receiver, ended, send, loraq) -> None:
    receiver.statuses = [500, 503, 429]
    job = ended(receiver.url)
    send()
    until(lambda: state(store, job) == "delivered")

    assert len(receiver.got) == 4
    assert len({(headers["webhook-id"], body) for _, headers, body in receiver.got}) == 1
    for _, headers, body in receiver.got:
        Webhook(loraq.webhook_secret()).verify(body, headers)


def test_it_is_given_up_after_ten_tries_and_at_once_when_the_receiver_says_so(store, receiver, ended, send) -> None:
    receiver.statuses = [410]
    gone = ended(receiver.url)
    send(first_wait_s=0.0)
    until(lambda: state(store, gone) == "given_up")
    assert len(receiver.got) == 1

    receiver.statuses = [500] * 100
    failing = ended(receiver.url)
    until(lambda: state(store, failing) == "given_up")
    assert len(receiver.got) == 1 + webhooks.TRIES
    assert outcome(store, failing) == "The receiver answered 500."
    assert store.redis.zcard(webhooks.OUTBOX) == 0
    assert 0 < store.redis.ttl(f"loraq:webhook:{failing.id}") <= webhooks.KEPT_S


def test_ten_tries_take_about_a_day() -> None:
    waits = [webhooks.wait_s(tries) for tries in range(1, webhooks.TRIES + 1)]
    assert waits[-1] is None
    assert 20 * 3600 < sum(wait for wait in waits if wait) < 28 * 3600
    assert len({webhooks.wait_s(5) for _ in range(10)}) > 1  # jitter


def test_a_redirect_is_not_followed(store, receiver, ended, send) -> None:
    inside = Receiver()
    with inside.running():
        receiver.statuses = [302, 307, 308]
        receiver.redirect_to = inside.url
        job = ended(receiver.url)
        send()
        until(lambda: len(receiver.got) == 3 and state(store, job) == "waiting")
        assert "redirects are not followed" in outcome(store, job)
        until(lambda: state(store, job) == "delivered")
        assert inside.got == []


def test_of_two_senders_at_once_one_sends(store, receiver, ended, send) -> None:
    jobs = [ended(receiver.url, f"owner-{i}") for i in range(20)]
    for _ in range(3):
        send()
    until(lambda: all(state(store, job) == "delivered" for job in jobs))
    assert sorted(headers["webhook-id"] for _, headers, _ in receiver.got) == sorted(job.id for job in jobs)


CHILD = """
import sys, threading
from api.public_address import Allowed
from api.webhook_sender import WebhookSender
from jobs.settings import Settings
from jobs.store import open_store
WebhookSender(open_store(Settings()), Allowed(["127.0.0.1"]), lease_s=1.5, every_s=0.05).run(threading.Event())
"""


def test_a_message_whose_sender_was_killed_is_sent_by_another(store, receiver, ended, send, settings) -> None:
    receiver.delay_s = 30
    job = ended(receiver.url)
    env = {"LORAQ_REDIS_URL": settings.redis_url.get_secret_value(), "LORAQ_QUEUE": settings.queue}
    with subprocess.Popen([sys.executable, "-c", CHILD], env=env, cwd=Path(__file__).parents[2]) as child:
        until(lambda: receiver.began == 1, 30)
        child.send_signal(signal.SIGKILL)
    receiver.delay_s = 0

    send()
    until(lambda: state(store, job) == "delivered")

    delivery = webhooks.delivery(store.redis, job.id)
    assert delivery is not None
    assert (delivery.tries, receiver.began) == (2, 2)


def test_who_comes_back_after_the_lease_settles_nothing(store, ended) -> None:
    job = ended("https://example.com/")
    late = webhooks.take(store.redis, lease_s=0)
    newer = webhooks.take(store.redis, lease_s=60)
    assert late is not None
    assert newer is not None
    assert webhooks.settle(store.redis, late, "Too late.", delivered=True, again_in_s=None) is None
    assert state(store, job) == "waiting"
    settled = webhooks.settle(store.redis, newer, "In time.", delivered=True, again_in_s=None)
    assert settled is not None
    assert settled.state == "delivered"


def test_redis_that_goes_away_loses_no_message(store, receiver, ended, send, redis_server) -> None:
    receiver.statuses = [500]
    job = ended(receiver.url)
    send(first_wait_s=1.0)
    until(lambda: "500" in outcome(store, job))
    redis_server.kill()
    time.sleep(0.3)
    redis_server.start()
    until(lambda: state(store, job) == "delivered")


# -- nothing waits for it ---------------------------------------------------------------------------------------------


def test_a_slow_receiver_holds_up_neither_jobs_nor_other_owners(store, ended, send, receiver, make_spec) -> None:
    slow = Receiver(delay_s=3)
    with slow.running():
        crowd = [ended(slow.url, "slow") for _ in range(3 * PARALLEL_PER_OWNER)]
        send()
        until(lambda: slow.began == PARALLEL_PER_OWNER)
        quick = ended(receiver.url, "quick")
        begin = time.monotonic()
        until(lambda: state(store, quick) == "delivered", 2)
        other = store.submit(JobRecord.create("slow", make_spec(webhook=slow.url)))
        assert store.request_cancel(other.id).status is Status.CANCELLED
        assert time.monotonic() - begin < 2
        assert slow.began == PARALLEL_PER_OWNER
    assert state(store, crowd[-1]) == "waiting"


def test_a_receiver_that_drips_gets_no_more_than_its_time(store, ended, send, monkeypatch) -> None:
    monkeypatch.setattr("api.webhook_post.DEADLINE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                try:
                    for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000:
                        connection.sendall(bytes([byte]))
                        time.sleep(0.05)
                except OSError:
                    pass  # it was cut off

        threading.Thread(target=drip, daemon=True).start()
        job = ended(f"http://127.0.0.1:{server.getsockname()[1]}/")
        send(first_wait_s=60)
        until(lambda: "did not answer within" in outcome(store, job), 3)


def test_an_endless_answer_is_cut_off_and_counts_by_its_status(store, ended, send) -> None:
    sent = 0
    with socket.create_server(("127.0.0.1", 0)) as server:

        def pour() -> None:
            nonlocal sent
            connection, _ = server.accept()
            with connection:
                try:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
                    while True:
                        sent += connection.send(b"x" * 65536)
                except OSError:
                    pass

        pouring = threading.Thread(target=pour, daemon=True)
        pouring.start()
        job = ended(f"http://127.0.0.1:{server.getsockname()[1]}/")
        send()
        until(lambda: state(store, job) == "delivered")
        pouring.join(5)
        assert not pouring.is_alive()
    assert sent < 64 << 20  # what the kernel's buffers take, and little more


# -- where it goes ----------------------------------------------------------------------------------------------------


def test_an_address_inside_is_not_connected_to(store, receiver, ended, send) -> None:
    by_address = ended(receiver.url)
    by_name = ended(f"http://localhost:{receiver.port}/", "bob")
    send(Allowed(), first_wait_s=60)
    for job in (by_address, by_name):
        until(lambda job=job: "no public address" in outcome(store, job))
    assert receiver.began == 0


def test_the_connection_is_made_to_the_address_that_was_looked_at(store, receiver, ended, send, monkeypatch) -> None:
    """A name server that says something else the second time leads nobody inside."""
    asked = []

    def rebinding(host: str, port: int):
        asked.append(host)
        return [ip_address("127.0.0.1" if len(asked) == 1 else "127.0.0.2")]

    real = socket.getaddrinfo
    looked_up = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asks, **more: looked_up.append(asks[0]) or real(*asks, **more))
    job = ended(f"http://rebind.example.com:{receiver.port}/")
    send(resolve=rebinding)
    until(lambda: state(store, job) == "delivered")

    assert asked == ["rebind.example.com"]
    assert "rebind.example.com" not in looked_up
    assert receiver.got[0][1]["host"] == f"rebind.example.com:{receiver.port}"


def test_a_name_that_comes_to_stand_for_an_address_inside_is_refused_then(store, receiver, ended, send) -> None:
    answers = iter(["127.0.0.1", "127.0.0.2", "127.0.0.2"])
    receiver.statuses = [500]
    job = ended(f"http://rebind.example.com:{receiver.port}/")
    send(resolve=lambda host, port: [ip_address(next(answers))])
    until(lambda: "no public address" in outcome(store, job))
    assert receiver.began == 1


def test_tls_is_checked_against_the_name_in_the_url(store, ended, send) -> None:
    authority = trustme.CA()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.example.com").configure_cert(server_side)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    named: list[str | None] = []
    server_side.sni_callback = lambda _socket, name, _context: named.append(name)
    receiver = Receiver(tls=server_side)

    with receiver.running():
        right = ended(f"https://hooks.example.com:{receiver.port}/")
        wrong = ended(f"https://other.example.com:{receiver.port}/", "bob")
        send(resolve=lambda host, port: [ip_address("127.0.0.1")], tls=trusting, first_wait_s=60)
        until(lambda: state(store, right) == "delivered")
        until(lambda: "CERTIFICATE_VERIFY_FAILED" in outcome(store, wrong))

    assert sorted(map(str, named)) == ["hooks.example.com", "other.example.com"]
    assert len(receiver.got) == 1


# -- secrets ----------------------------------------------------------------------------------------------------------


def test_neither_the_secret_nor_the_url_is_logged(store, receiver, ended, send, caplog) -> None:
    set_up_logging()
    logging.getLogger().addHandler(caplog.handler)
    receiver.statuses = [500]
    job = ended(receiver.url)
    send()
    until(lambda: state(store, job) == "delivered")
    text = "\n".join(record.getMessage() + str(vars(record)) for record in caplog.records)
    assert job.id in text
    assert webhooks.signing_secret(store.redis, "alice") not in text
    assert "in-the-url" not in text
    assert "webhook-signature" not in text


def test_each_owner_has_a_secret_of_their_own_that_stays(client_of, url) -> None:
    alice, bob = client_of("alice"), client_of("bob")
    assert alice.webhook_secret() == alice.webhook_secret()
    assert alice.webhook_secret().startswith("whsec_")
    assert alice.webhook_secret() != bob.webhook_secret()
    with httpx.Client(headers={"Authorization": alice._http.headers["Authorization"]}) as by_hand:
        assert by_hand.get(f"{url}/v1/webhooks/secret").headers["Cache-Control"] == "no-store"


# -- at submission ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("webhook", ["http://127.0.0.1/", "http://2130706433/", "https://u:p@example.com/"])
def test_a_webhook_that_may_not_be_is_refused_with_the_spec(loraq, make_spec, webhook) -> None:
    with pytest.raises(ApiError) as refused:
        loraq.submit(make_spec().model_dump(mode="json") | {"webhook": webhook})
    assert refused.value.code == "invalid_spec"
    assert [problem.field for problem in refused.value.problems] == ["webhook"]


def test_the_process_of_the_reaper_sends(store, receiver, ended, settings) -> None:
    job = ended(receiver.url)
    env = {
        "LORAQ_REDIS_URL": settings.redis_url.get_secret_value(),
        "LORAQ_QUEUE": settings.queue,
        "LORAQ_WEBHOOK_ALLOW": "127.0.0.0/8",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "api.reaper"], env=env, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE
    ) as reaper:
        until(lambda: state(store, job) == "delivered", 30)
        reaper.terminate()
        log = reaper.communicate(timeout=20)[1].decode()
    assert reaper.returncode == 0
    assert job.id in log
    assert "in-the-url" not in log


def test_settings_of_the_api_open_addresses_for_webhooks(serve, make_settings, store, make_spec) -> None:
    settings: Settings = make_settings(webhook_allow="127.0.0.1")
    url = serve(settings)
    with Loraq(url, create_token(store.redis, "alice")) as client:
        client.validate(make_spec().model_dump(mode="json") | {"webhook": "http://127.0.0.1:8000/"})
