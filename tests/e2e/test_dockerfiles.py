"""What the Dockerfiles promise, as far as they say it themselves; test_end_to_end.py looks at the images."""

import re
from pathlib import Path

import pytest

from jobs.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
Instruction = tuple[str, str]


@pytest.fixture(params=DOCKERFILES, ids=lambda path: path.name)
def instructions(request: pytest.FixtureRequest) -> list[Instruction]:
    """(FROM, what follows), …: lines that go on are one."""
    text = re.sub(r"^#.*\n", "", request.param.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def last_stage(instructions: list[Instruction]) -> list[Instruction]:
    begin = max(i for i, (name, _) in enumerate(instructions) if name == "FROM")
    return instructions[begin:]


def test_an_image_runs_as_a_number_that_is_not_root(instructions: list[Instruction]) -> None:
    users = [rest for name, rest in last_stage(instructions) if name == "USER"]

    assert len(users) == 1  # by number, so that Kubernetes sees that it is not root
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[0])


def test_an_image_knows_whether_it_is_well(instructions: list[Instruction]) -> None:
    checks = [rest for name, rest in last_stage(instructions) if name == "HEALTHCHECK"]

    assert len(checks) == 1
    assert "CMD [" in checks[0]


def test_an_image_is_told_no_secret_and_no_setting_that_could_hold_one(instructions: list[Instruction]) -> None:
    told = " ".join(rest for name, rest in instructions if name in ("ENV", "ARG", "LABEL"))
    names = set(re.findall(r"([A-Za-z_][\w.]*)=", told)) | {rest for name, rest in instructions if name == "ARG"}
    secret = {
        f"LORAQ_{name.upper()}" for name, held in Settings.model_fields.items() if "Secret" in str(held.annotation)
    }

    assert len(secret) >= 3
    assert not {name for name in names if name in secret or re.search("KEY|SECRET|TOKEN|PASSW", name, re.IGNORECASE)}


def test_an_image_takes_only_files_that_are_listed(instructions: list[Instruction]) -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [rest for name, rest in instructions if name in ("COPY", "ADD") and "--from=" not in rest]

    assert ignore[1] == "*"
    assert "!.env" not in ignore
    assert all(source not in (".", "./", "/") for rest in copied for source in rest.split()[:-1])


def test_the_dependencies_are_a_layer_before_loraq_s_own_code(instructions: list[Instruction]) -> None:
    steps = [(name, rest) for name, rest in instructions if name in ("COPY", "RUN")]
    installed = next(i for i, (name, rest) in enumerate(steps) if name == "RUN" and "-c constraints.txt" in rest)

    assert all(not re.match(r"(jobs|api|worker) ", rest) for _, rest in steps[:installed])
