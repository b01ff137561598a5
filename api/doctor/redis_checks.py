"""Redis: whether it answers, how fast, whether it forgets nothing, and who works on it."""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import time
from collections.abc import Callable
from statistics import median
from typing import Any, cast

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from api.doctor.finding import Finding, Findings
from api.reaper import LOCK
from jobs import workers

PINGS = 20
SLOW_S = 0.02
"""A submission takes three round trips, a claim some ten."""

CLOCK_WARNING_S, CLOCK_FAILED_S = 2.0, 300.0
TIMEOUT_S = 5.0


def look_at_redis(url: str, clock: Callable[[], float] = time.time) -> list[Finding]:
    """Look. It stops where Redis does not answer.

    Args:
        url: with password; it is never repeated in a finding.
        clock: of this machine, seconds since 1970.
    """
    found = Findings("redis")
    try:
        with Redis.from_url(url, socket_connect_timeout=TIMEOUT_S, socket_timeout=TIMEOUT_S, retry=None) as redis:
            _reach(found, redis, clock)
            info = redis.info()
            _durable(found, redis, info)
            _evicts_nothing(found, info)
            _who_works(found, redis)
    except (RedisError, ValueError) as error:
        found.failed("reachable", f"{error} Look at LORAQ_REDIS_URL: address, password, TLS (rediss://).")
    return found.all


def _reach(found: Findings, redis: "Redis", clock: Callable[[], float]) -> None:
    redis.ping()  # connects
    trips_s: list[float] = []
    for _ in range(PINGS):
        begin = time.perf_counter()
        redis.ping()
        trips_s.append(time.perf_counter() - begin)
    typical_ms, worst_ms = median(trips_s) * 1000, max(trips_s) * 1000
    said = f"{typical_ms:.2f} ms a round trip, {worst_ms:.2f} ms the worst of {PINGS}"
    if typical_ms > SLOW_S * 1000:
        found.warning("round trip", f"{said}: submissions will be slow. Put API and Redis close to each other.")
    else:
        found.ok("round trip", said)
    seconds, microseconds = redis.time()
    judge_clock(found, clock() - (seconds + microseconds / 1e6))


def judge_clock(found: Findings, ahead_s: float) -> None:
    """Say how far this machine's clock is from the subject's."""
    said = f"this machine is {abs(ahead_s):.1f} s {'ahead' if ahead_s > 0 else 'behind'}"
    if abs(ahead_s) > CLOCK_FAILED_S:
        found.failed("clock", f"{said}: signatures for the object store will be refused. Run an NTP client.")
    elif abs(ahead_s) > CLOCK_WARNING_S:
        found.warning("clock", f"{said}: waits before a new try are off by as much. Run an NTP client.")
    else:
        found.ok("clock", said)


def _durable(found: Findings, redis: "Redis", info: dict[str, Any]) -> None:
    """An acknowledged submission must survive a power cut."""
    if not info.get("aof_enabled"):
        found.failed(
            "durable", "appendonly is off: a restart forgets jobs. Set `appendonly yes` and `appendfsync always`."
        )
        return
    if info.get("aof_last_write_status", "ok") != "ok":
        found.failed("durable", "the last write to the append-only file failed: look at Redis' log, often a full disk.")
        return
    try:
        fsync = cast(dict[str, str], redis.config_get("appendfsync")).get("appendfsync", "")
    except ResponseError:
        found.warning(
            "durable",
            "there is an append-only file, but CONFIG is refused here, as on most managed servers: ask your provider "
            "for `appendfsync always`, or accept that a power cut loses the last second.",
        )
        return
    if fsync == "always":
        found.ok("durable", "append-only file, synced before every answer")
    else:
        found.warning(
            "durable",
            f"appendfsync is {fsync}: a power cut loses jobs of the last second, or more. Set `appendfsync always`.",
        )


def _evicts_nothing(found: Findings, info: dict[str, Any]) -> None:
    policy, limit = info.get("maxmemory_policy"), int(info.get("maxmemory", 0))
    used_mib = int(info.get("used_memory", 0)) / 2**20
    said = f"{used_mib:.0f} MiB in use" + (f" of {limit / 2**20:.0f}" if limit else "")
    if policy != "noeviction":
        message = f"maxmemory-policy is {policy}: when memory is short, jobs vanish. Set `maxmemory-policy noeviction`."
        found.failed("memory", message) if limit else found.warning("memory", message)
    elif limit and used_mib * 2**20 > 0.8 * limit:
        found.warning("memory", f"{said}: when it is full, submissions are refused. Raise maxmemory.")
    else:
        found.ok("memory", said)


def _who_works(found: Findings, redis: "Redis") -> None:
    if redis.exists(LOCK):
        found.ok("reaper")
    else:
        found.warning("reaper", "none runs: lost attempts and waits stay as they are. Start `python -m api.reaper`.")
    count = len(workers.workers(redis))
    if count:
        found.ok("workers", f"{count} live")
    else:
        found.warning("workers", "none lives: jobs wait. Start `python -m worker` on a GPU machine.")
