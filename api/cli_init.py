"""`loraq init`: writes .env, which docker-compose.yml reads, with fresh secrets."""

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from api.auth import TOKEN_PREFIX
from api.cli_output import ExitCode, Output

TEMPLATE = ".env.example"

SECRETS: dict[str, Callable[[], str]] = {
    "LORAQ_REDIS_PASSWORD": lambda: secrets.token_urlsafe(24),
    "LORAQ_S3_ACCESS_KEY_ID": lambda: f"loraq-{secrets.token_hex(6)}",
    "LORAQ_S3_SECRET_ACCESS_KEY": lambda: secrets.token_urlsafe(24),
    "LORAQ_API_TOKEN": lambda: TOKEN_PREFIX + secrets.token_urlsafe(32),
}
"""What is made where the template leaves it empty."""


def init(
    folder: Annotated[
        Path, typer.Option(help="Where docker-compose.yml lies, and .env is to.", exists=True, file_okay=False)
    ] = Path(),
    workers: Annotated[int, typer.Option(help="How many workers: one for each GPU.", min=1)] = 1,
    base_model: Annotated[bool, typer.Option(help="Whether the first start fetches SDXL base 1.0 (6.9 GB).")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one value a line.")] = False,
) -> None:
    """Write .env for docker-compose.yml, with fresh secrets. One that is there is never touched."""
    output = Output(as_json)
    template, file = folder / TEMPLATE, folder / ".env"
    if not template.is_file():
        output.error("usage", f"There is no {template}: run this in a clone of loraq, or name one with --folder.")
        raise typer.Exit(ExitCode.INVALID)
    values = {name: make() for name, make in SECRETS.items()}
    values |= {"LORAQ_WORKERS": str(workers), "LORAQ_UID": str(os.getuid()), "LORAQ_GID": str(os.getgid())}
    if not base_model:
        values["LORAQ_BASE_MODELS"] = ""
    text = filled(template.read_text(), values)
    try:
        # Made with its mode, so that nobody can read it in between, and never over another.
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
            written.write(text)
    except FileExistsError:
        output.error("exists", f"{file} is there already, and is left as it is: it holds the secrets of your data.")
        raise typer.Exit(ExitCode.REFUSED) from None
    if as_json:
        output.json({"file": str(file), "made": sorted(SECRETS)})
    else:
        output.say(f"Wrote {file}, with fresh secrets. Keep it: your data opens with them.")


def filled(template: str, values: dict[str, str]) -> str:
    """The template with `values` in the lines that set them.

    Raises:
        ValueError: the template has no such line.
    """
    for name, value in values.items():
        template, count = re.subn(rf"^{name}=.*$", f"{name}={value}", template, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{TEMPLATE} sets {name} {count} times, and should once.")
    return template
