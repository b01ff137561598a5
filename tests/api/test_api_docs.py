"""docs/cli.md and docs/api.md say what there is: every command, option, exit code, route, event kind and error code."""

import re
from pathlib import Path
from typing import get_args

import pytest
import typer
from typer.core import TyperGroup

from api.app import create_app
from api.cli import app
from api.cli_output import EXIT_CODES, ExitCode
from api.errors import _CODES, _STATUS
from jobs.errors import LoraqError
from jobs.events import Kind
from jobs.settings import Settings

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture(scope="module")
def cli_page() -> str:
    return (DOCS / "cli.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def api_page() -> str:
    return (DOCS / "api.md").read_text(encoding="utf-8")


def _commands(group: TyperGroup, prefix: str = "loraq") -> dict[str, list[str]]:
    """Options by command."""
    found: dict[str, list[str]] = {}
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            found |= _commands(command, f"{prefix} {name}")
        else:
            found[f"{prefix} {name}"] = [
                option for each in command.params for option in each.opts if option[:2] == "--"
            ]
    return found


def test_every_command_and_option_is_on_the_page_and_no_other(cli_page: str) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    commands = _commands(group)
    listed = re.findall(r"^\| `(loraq [a-z -]+?)(?: [A-Z]+)?` \|", cli_page, re.MULTILINE)
    assert sorted(listed) == sorted(commands)
    options = {option for each in commands.values() for option in each}
    assert {option for option in options if f"`{option}" not in cli_page} == set()


def test_every_command_has_json() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    assert {name for name, options in _commands(group).items() if "--json" not in options} == set()


def test_every_exit_code_is_on_the_page_and_in_the_help(cli_page: str) -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", cli_page, re.MULTILINE))
    assert rows == {str(code.value): meaning for code, meaning in EXIT_CODES.items()}
    assert set(EXIT_CODES) == set(ExitCode)
    assert all(meaning in (app.info.epilog or "") for meaning in EXIT_CODES.values())


def test_every_route_is_on_the_page_and_no_other(api_page: str) -> None:
    paths = create_app(Settings()).openapi()["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert set(re.findall(r"^\| `((?:GET|POST) [^`]+)`", api_page, re.MULTILINE)) == routes


def test_every_error_code_is_on_the_page(api_page: str) -> None:
    def family(kind: type[LoraqError]) -> set[str]:
        return {kind.code}.union(*map(family, kind.__subclasses__()))

    codes = set().union(*map(family, _STATUS)) | set(_CODES.values()) | {"internal_error", "redis_unavailable"}
    assert {code for code in codes if f"`{code}`" not in api_page} == set()


def test_every_kind_of_event_is_on_the_page(api_page: str) -> None:
    assert {kind for kind in get_args(Kind) if f"`{kind}`" not in api_page} == set()
