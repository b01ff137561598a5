"""`loraq recover`: rebuilds what Redis has lost, for operators."""

from typing import Annotated

import typer

from api.cli_operator import operator, redis_itself
from api.cli_output import ExitCode, Output
from jobs import audit
from jobs.errors import StorageError
from jobs.recovery import Recovered
from jobs.recovery import recover as recover_records
from jobs.settings import Settings
from jobs.storage import Storage
from jobs.store import open_store


def recover(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one value a line.")] = False,
) -> None:
    """Rebuild the job records that Redis has lost from the bucket. Needs the API's settings, not the API."""
    output = Output(as_json)
    settings = Settings()
    found: list[Recovered] = []
    with redis_itself(output) as redis:
        try:
            for each in recover_records(open_store(settings), Storage(settings), settings, dry_run):
                found.append(each)
                if as_json:
                    output.json(each)
                elif each.state != "known":
                    detail = each.message or f"{each.owner}, {each.status}"
                    output.say(f"{each.state}: {each.job_id or each.folder} ({detail})")
                if each.state == "recovered" and not dry_run:
                    audit.write(redis, operator(), audit.Action.RECOVER, each.job_id, status=each.status)
        except StorageError as error:
            output.error(error.code, str(error))
            raise typer.Exit(ExitCode.UNAVAILABLE) from None
    counts = {state: sum(each.state == state for each in found) for state in ("recovered", "known", "unreadable")}
    if not as_json:
        would = "would be recovered" if dry_run else "recovered"
        output.say(f"{counts['recovered']} {would}, {counts['known']} known, {counts['unreadable']} unreadable.")
    if counts["unreadable"]:
        raise typer.Exit(ExitCode.REFUSED)
