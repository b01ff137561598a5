"""The outbox of webhooks: who is to be told of a job's end, from the transaction that ends it until they know.

Keys:
    loraq:webhooks                  ids of jobs whose owners are to be told, by when to try next (seconds since 1970)
    loraq:webhook:{id}              how far that has come, JSON: kept for a month, for whoever asks why nothing came
    loraq:webhook-secret:{owner}    what their messages are signed with; the receiver must hold it too, so it is no hash
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import base64
import random
import secrets
import time
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict, Field
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import WatchError

from jobs.record import JobRecord, now

OUTBOX = "loraq:webhooks"

TRIES = 10
FIRST_WAIT_S = 10.0
"""Tripled after each try: with jitter the ten tries take about a day."""

KEPT_S = 30 * 86_400
LOOK_AT = 5_000
"""Due entries that are looked at for one that may be tried now: a crowd of one owner's hides no other's."""


class Delivery(BaseModel):
    """How far a message has come."""

    model_config = ConfigDict(frozen=True)

    state: Literal["waiting", "delivered", "given_up"] = "waiting"
    tries: int = Field(default=0, description="Begun so far, of at most ten.")
    next_try_at: datetime | None = Field(default=None, description="When it is tried next; null once it is over.")
    last_outcome: str | None = Field(default=None, description="What came of the newest try, for a person.")
    updated_at: datetime


class Due(BaseModel):
    """A message that one sender has taken for one try."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    owner: str
    number: int  # of this try, from 1: who comes back with an older one settles nothing


def put(pipeline: "Pipeline", record: JobRecord) -> None:
    """Let the owner be told of the job's end, inside the transaction that makes it final."""
    if record.spec.webhook is None:
        return
    at = now()
    pipeline.set(_key(record.id), Delivery(next_try_at=at, updated_at=at).model_dump_json())
    pipeline.zadd(OUTBOX, {_member(record.owner, record.id): at.timestamp()})


def take(redis: "Redis", lease_s: float, busy_owners: Collection[str] = ()) -> Due | None:
    """The message that is due longest, for one try, or None.

    It is due again after `lease_s`, so that one whose sender was killed is taken up by another.

    Args:
        busy_owners: whose messages stay where they are for now.
    """
    while True:
        with redis.pipeline() as pipeline:
            try:
                pipeline.watch(OUTBOX)
                at = time.time()
                due = cast(list[bytes], pipeline.zrangebyscore(OUTBOX, 0, at, start=0, num=LOOK_AT))
                found = next((pair for pair in _pairs(due) if pair[0] not in busy_owners), None)
                if found is None:
                    return None
                owner, job_id = found
                earlier = _decode(cast(bytes | None, pipeline.get(_key(job_id))))
                taken = earlier.model_copy(
                    update={
                        "tries": earlier.tries + 1,
                        "next_try_at": datetime.fromtimestamp(at + lease_s, UTC),
                        "updated_at": now(),
                    }
                )
                pipeline.multi()
                pipeline.set(_key(job_id), taken.model_dump_json())
                pipeline.zadd(OUTBOX, {_member(owner, job_id): at + lease_s})
                pipeline.execute()
                return Due(job_id=job_id, owner=owner, number=taken.tries)
            except WatchError:
                continue  # another sender took one, or a job has ended: look again


def settle(redis: "Redis", due: Due, outcome: str, delivered: bool, again_in_s: float | None) -> Delivery | None:
    """Say what came of a try. None, and nothing is changed, if another sender has taken the message since.

    Args:
        outcome: one sentence for the owner.
        delivered: whether the receiver took it.
        again_in_s: wait before the next try; None: there is none.
    """
    while True:
        with redis.pipeline() as pipeline:
            try:
                pipeline.watch(_key(due.job_id))
                earlier = _decode(cast(bytes | None, pipeline.get(_key(due.job_id))))
                if earlier.tries != due.number or earlier.state != "waiting":
                    return None
                over = delivered or again_in_s is None
                next_s = None if over or again_in_s is None else time.time() + again_in_s
                settled = Delivery(
                    state="delivered" if delivered else "given_up" if over else "waiting",
                    tries=due.number,
                    next_try_at=None if next_s is None else datetime.fromtimestamp(next_s, UTC),
                    last_outcome=outcome,
                    updated_at=now(),
                )
                pipeline.multi()
                pipeline.set(_key(due.job_id), settled.model_dump_json(), ex=KEPT_S if over else None)
                if next_s is None:
                    pipeline.zrem(OUTBOX, _member(due.owner, due.job_id))
                else:
                    pipeline.zadd(OUTBOX, {_member(due.owner, due.job_id): next_s})
                pipeline.execute()
                return settled
            except WatchError:
                continue


def delivery(redis: "Redis", job_id: str) -> Delivery | None:
    """How far the message about a job has come; None if there is none, or it is long over."""
    raw = cast(bytes | None, redis.get(_key(job_id)))
    return Delivery.model_validate_json(raw) if raw else None


def wait_s(tries: int, first_s: float = FIRST_WAIT_S) -> float | None:
    """Seconds until the next try after so many; None: that was the last.

    Between three quarters and all of the full wait, at random: messages that failed together do not come back together.
    """
    return None if tries >= TRIES else first_s * 3 ** (tries - 1) * random.uniform(0.75, 1)


def signing_secret(redis: "Redis", owner: str) -> str:
    """`whsec_...`, by which an owner's receiver knows that a message is ours; made when it is first asked for."""
    key = f"loraq:webhook-secret:{owner}"
    redis.set(key, "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(), nx=True)
    return cast(bytes, redis.get(key)).decode()


def _key(job_id: str) -> str:
    return f"loraq:webhook:{job_id}"


def _member(owner: str, job_id: str) -> str:
    return f"{owner} {job_id}"


def _pairs(members: list[bytes]) -> Iterator[tuple[str, str]]:
    for member in members:
        owner, _, job_id = member.decode().partition(" ")
        yield owner, job_id


def _decode(raw: bytes | None) -> Delivery:
    return Delivery.model_validate_json(raw) if raw else Delivery(updated_at=now())
