"""`loraq init` writes secrets once, for one pair of eyes."""

import re
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.cli import app
from api.cli_init import SECRETS, filled
from api.cli_output import ExitCode

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".env.example").write_text((ROOT / ".env.example").read_text())
    return tmp_path


def init(folder: Path, *options: str) -> int:
    return CliRunner().invoke(app, ["init", "--folder", str(folder), *options]).exit_code


def values(file: Path) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", file.read_text(), flags=re.MULTILINE))


def test_every_secret_is_fresh_and_only_the_owner_reads_them(folder: Path, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / ".env.example").write_text((ROOT / ".env.example").read_text())
    assert (init(folder, "--workers", "3"), init(other)) == (0, 0)
    ours, theirs = values(folder / ".env"), values(other / ".env")

    assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600
    assert all(len(ours[name]) >= 18 and ours[name] != theirs[name] for name in SECRETS)
    assert (ours["LORAQ_WORKERS"], theirs["LORAQ_WORKERS"]) == ("3", "1")
    assert ours["LORAQ_BASE_MODELS"].startswith("https://")


def test_a_file_that_is_there_is_never_touched(folder: Path) -> None:
    (folder / ".env").write_text("LORAQ_REDIS_PASSWORD=mine\n")

    assert init(folder) == ExitCode.REFUSED
    assert (folder / ".env").read_text() == "LORAQ_REDIS_PASSWORD=mine\n"


def test_the_base_model_may_be_left_out(folder: Path) -> None:
    assert init(folder, "--no-base-model") == 0
    assert values(folder / ".env")["LORAQ_BASE_MODELS"] == ""


def test_elsewhere_it_says_what_is_missing(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["init", "--folder", str(tmp_path)])

    assert result.exit_code == ExitCode.INVALID
    assert ".env.example" in result.output


def test_a_template_without_the_line_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 times"):
        filled("OTHER=\n", {"LORAQ_API_TOKEN": "x"})
