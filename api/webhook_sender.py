"""Tells owners of the ends of their jobs: signed, and again for a day until the receiver takes it.

It waits on receivers in a thread of its own, many at once and few of one owner's, so a slow one holds up neither a
job nor another owner's messages. Any number of senders may run: each message is leased for one try (jobs/webhooks.py),
and the lease of a sender that was killed runs out. So a message may come twice, with the same `webhook-id`.

Messages follow the Standard Webhooks specification, https://www.standardwebhooks.com.
"""

import asyncio
import json
import logging
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from redis.exceptions import RedisError
from standardwebhooks import Webhook

from api.public_address import Allowed
from api.schemas import Job
from api.webhook_post import Outcome, Poster, Resolve
from jobs import webhooks
from jobs.errors import JobNotFound
from jobs.outage import Outage
from jobs.record import now
from jobs.store import Store

log = logging.getLogger(__name__)

PARALLEL = 16
PARALLEL_PER_OWNER = 4

LEASE_S = 60.0
"""Longer than a try, api.webhook_post.DEADLINE_S, and the note of what came of it."""

STOP_GRACE_S = 5.0
"""For tries under way when told to stop; what is not done then is due again when its lease runs out."""

T = TypeVar("T")


class WebhookSender:
    """One sender.

    Args:
        store: all jobs.
        allowed: where messages may go.
        first_wait_s: before the second try; each wait after it is three times as long.
        lease_s: how long a try is this sender's own.
        every_s: how often it looks for messages that are due.
        resolve: addresses by host and port; None: as this machine resolves them.
        tls: whose certificates are trusted; None: those that certifi lists.
    """

    def __init__(
        self,
        store: Store,
        allowed: Allowed,
        first_wait_s: float = webhooks.FIRST_WAIT_S,
        lease_s: float = LEASE_S,
        every_s: float = 1.0,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._store = store
        self._allowed = allowed
        self._first_wait_s = first_wait_s
        self._lease_s = lease_s
        self._every_s = every_s
        self._resolve = resolve
        self._tls = tls
        self._outbox = ThreadPoolExecutor(4, "outbox")  # that ask Redis
        self._under_way: dict[asyncio.Task[None], str] = {}  # tries, and whose messages they are

    def run(self, stop: threading.Event) -> None:
        """Send what is due until `stop` is set; a Redis that is gone is waited for."""
        asyncio.run(self._run(stop))

    async def _run(self, stop: threading.Event) -> None:
        outage = Outage(log)
        async with Poster(self._allowed, self._resolve, self._tls) as poster:
            while not stop.is_set():
                try:
                    await self._begin_tries(poster)
                    outage.over()
                except RedisError as error:
                    outage.met(error)
                except Exception:  # a thread that dies quietly would be noticed by nobody
                    log.exception("The outbox of webhooks cannot be read")
                await asyncio.sleep(self._every_s)
            await self._end_tries()

    async def _begin_tries(self, poster: Poster) -> None:
        """Begin a try of all that is due, as far as there is room."""
        while len(self._under_way) < PARALLEL:
            counts = Counter(self._under_way.values())
            busy = {owner for owner, count in counts.items() if count >= PARALLEL_PER_OWNER}
            due = await self._ask(lambda busy=busy: webhooks.take(self._store.redis, self._lease_s, busy))
            if due is None:
                return
            task = asyncio.create_task(self._try(poster, due))
            self._under_way[task] = due.owner
            task.add_done_callback(self._under_way.pop)

    async def _end_tries(self) -> None:
        tries = set(self._under_way)
        if tries:
            await asyncio.wait(tries, timeout=STOP_GRACE_S)
            for task in tries:
                task.cancel()
            await asyncio.gather(*tries, return_exceptions=True)

    async def _try(self, poster: Poster, due: webhooks.Due) -> None:
        """One try, and the note of what came of it."""
        data = {"job_id": due.job_id, "owner": due.owner, "try": due.number}
        try:
            outcome = await self._send(poster, due)
            wait_s = None if outcome.final else webhooks.wait_s(due.number, self._first_wait_s)
            said = outcome.sentence, outcome.delivered, wait_s
            after = await self._ask(lambda: webhooks.settle(self._store.redis, due, *said))
            state = after.state.replace("_", " ") if after else "another sender's"
            level = logging.INFO if outcome.delivered else logging.WARNING
            sentence = "Try %d of the webhook of job %s: %s It is %s."
            log.log(level, sentence, due.number, due.job_id, outcome.sentence, state, extra=data)
        except RedisError as error:
            log.warning("The webhook of job %s will come again: %s", due.job_id, error, extra=data)
        except Exception:  # a bug of ours that one message brings out must not end the others
            log.exception("The webhook of job %s broke", due.job_id, extra=data)

    async def _send(self, poster: Poster, due: webhooks.Due) -> Outcome:
        try:
            url, body, headers = await self._ask(lambda: self._message(due))
        except JobNotFound:
            return Outcome(False, "The job is gone.", final=True)
        return await poster.post(url, body, headers)

    def _message(self, due: webhooks.Due) -> tuple[str, bytes, dict[str, str]]:
        """URL, body and headers. Body and id are the same at every try, the signature is of this moment."""
        record = self._store.get(due.job_id)
        assert record.spec.webhook is not None
        told = {
            "type": f"job.{record.status}",
            "timestamp": record.updated_at.isoformat(),
            "data": Job.of(record, self._store.progress(record.id)).model_dump(mode="json"),
        }
        body, at = json.dumps(told), now()
        secret = webhooks.signing_secret(self._store.redis, record.owner)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "loraq",
            "webhook-id": record.id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": Webhook(secret).sign(record.id, at, body),
        }
        return record.spec.webhook, body.encode(), headers

    async def _ask(self, question: Callable[[], T]) -> T:
        """Ask Redis without holding up what waits on receivers."""
        return await asyncio.get_running_loop().run_in_executor(self._outbox, question)
