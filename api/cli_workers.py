"""`loraq workers`: which workers there are, for operators."""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

from datetime import UTC, datetime
from typing import Annotated

import typer
from redis import Redis
from redis.exceptions import RedisError
from rich.table import Table

from api.cli_output import ExitCode, Output
from jobs import workers as registry
from jobs.settings import Settings


def workers(as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one value a line.")] = False) -> None:
    """List the workers that live, and what each is at. Needs Redis (LORAQ_REDIS_URL), not the API."""
    output = Output(as_json)
    try:
        with Redis.from_url(Settings().redis_url.get_secret_value(), socket_timeout=15) as redis:
            found = registry.workers(redis)
    except RedisError as error:
        output.error("redis_unavailable", f"Redis does not answer at LORAQ_REDIS_URL: {error}")
        raise typer.Exit(ExitCode.UNAVAILABLE) from None
    if as_json:
        for worker in found:
            output.json(worker)
        return
    if not found:
        output.say("There are no workers: jobs wait.")
        return
    table = Table("worker", "GPU", "job", "attempt", "seen", box=None, padding=(0, 2, 0, 0))
    for worker in found:
        age_s = max(0, (datetime.now(UTC) - worker.seen_at).total_seconds())
        gpus = "; ".join(worker.gpus) or "none"
        table.add_row(worker.name, gpus, worker.job_id or "idle", str(worker.attempt or ""), f"{age_s:.0f} s ago")
    output.out.print(table)
