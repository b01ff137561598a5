"""`loraq workers`: which workers there are, for operators."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from api.cli_operator import redis_itself
from api.cli_output import Output
from jobs import workers as registry


def workers(as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one value a line.")] = False) -> None:
    """List the workers that live, and what each is at. Needs Redis (LORAQ_REDIS_URL), not the API."""
    output = Output(as_json)
    with redis_itself(output) as redis:
        found = registry.workers(redis)
    if as_json:
        for worker in found:
            output.json(worker)
        return
    if not found:
        output.say("There are no workers: jobs wait.")
        return
    table = Table("worker", "class", "GPU", "job", "attempt", "seen", box=None, padding=(0, 2, 0, 0))
    for worker in found:
        age_s = max(0, (datetime.now(UTC) - worker.seen_at).total_seconds())
        gpus = "; ".join(worker.gpus) or "none"
        table.add_row(
            worker.name,
            worker.gpu_class,
            gpus,
            worker.job_id or "idle",
            str(worker.attempt or ""),
            f"{age_s:.0f} s ago",
        )
    output.out.print(table)
    for worker in found:
        if worker.refuses:
            output.say(f"{worker.name}: {worker.refuses}")
