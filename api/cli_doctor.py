"""`loraq doctor`: the report, for operators."""

from itertools import groupby
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.text import Text

from api.cli_output import ExitCode, Output, printable
from api.doctor.bucket_checks import look_at_buckets
from api.doctor.finding import Finding, State
from api.doctor.machine_checks import look_at_disk, look_at_gpu
from api.doctor.redis_checks import look_at_redis
from jobs.settings import Settings

_STYLES: dict[State, str] = {"ok": "green", "skipped": "dim", "warning": "yellow", "failed": "red"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one value a line.")] = False) -> None:
    """Look at all that loraq leans on: Redis, buckets, GPU, disk, clocks. Needs the settings of the API (LORAQ_*)."""
    output = Output(as_json)
    found = _look()
    if as_json:
        for each in found:
            output.json(each)
    else:
        for line in _lines(found):
            output.out.print(line)
    if any(each.state == "failed" for each in found):
        raise typer.Exit(ExitCode.UNAVAILABLE)


def _look() -> list[Finding]:
    try:
        settings = Settings()
    except ValidationError as error:
        return [
            Finding(
                subject="settings",
                check=".".join(["LORAQ", *map(str, each["loc"])]).upper().replace(".", "_"),
                state="failed",
                message=str(each["msg"]).removeprefix("Value error, "),
            )
            for each in error.errors(include_input=False)
        ]
    return [
        *look_at_redis(settings.redis_url.get_secret_value()),
        *look_at_buckets(settings),
        *look_at_gpu(),
        *look_at_disk(settings.data_dir, settings.cache_max_gib),
    ]


def _lines(found: list[Finding]) -> list[Text]:
    """One line for what is well and has nothing more to say of a subject, one for each other finding."""
    lines: list[Text] = []
    for (subject, state, plain), group in groupby(found, lambda each: (each.subject, each.state, not each.message)):
        checks = list(group)
        if plain:
            lines.append(_line(state, subject, ", ".join(each.check for each in checks)))
        else:
            lines.extend(_line(state, subject, f"{each.check}: {printable(each.message)}") for each in checks)
    return lines


def _line(state: State, subject: str, text: str) -> Text:
    return Text.assemble((f"{state:<8}", _STYLES[state]), f" {subject}: {text}")
