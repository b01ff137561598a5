"""`loraq audit`: who did what when, for operators."""

from datetime import datetime
from itertools import islice
from typing import Annotated

import typer
from rich.table import Table

from api.cli_operator import redis_itself
from api.cli_output import Output, printable
from jobs.audit import Action, Entry, read


def audit(
    owner: Annotated[str | None, typer.Option(help="Only what this owner did; operator: on the command line.")] = None,
    action: Annotated[Action | None, typer.Option(help="Only this.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only what was done to this job, dataset or token.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Only since then, in this machine's time zone.")] = None,
    limit: Annotated[int, typer.Option(help="How many entries.", min=1)] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one value a line.")] = False,
) -> None:
    """Show who did what when, newest first. Needs Redis (LORAQ_REDIS_URL), not the API."""
    output = Output(as_json)

    def wanted(entry: Entry) -> bool:
        asked = ((owner, entry.owner), (action, entry.action), (subject, entry.subject))
        return all(value is None or value == found for value, found in asked)

    with redis_itself(output) as redis:
        entries = list(islice(filter(wanted, read(redis, since and since.astimezone())), limit))
    if as_json:
        for entry in entries:
            output.json(entry)
        return
    if not entries:
        output.say("There are no such entries.")
        return
    table = Table("when", "who", "token", "what", "to what", "", box=None, padding=(0, 2, 0, 0))
    for entry in entries:
        detail = ", ".join(f"{name} {value}" for name, value in entry.detail.items() if value != "")
        when = f"{entry.at.astimezone():%Y-%m-%d %H:%M:%S}"
        table.add_row(when, entry.owner, entry.token, entry.action, printable(entry.subject), printable(detail))
    output.out.print(table)
