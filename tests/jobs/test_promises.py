"""docs/promises.md names a test for each promise, and each of them is there."""

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent.parent
PAGE = TESTS.parent / "docs" / "promises.md"
ROWS = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| (?!promise )\S", line)]


@cache
def functions_in(path: Path) -> set[str]:
    return {each.name for each in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(each, ast.FunctionDef)}


def test_every_promise_names_tests_that_are_there():
    assert len(ROWS) > 60
    for row in ROWS:
        _, promise, named, _ = row.split("|")
        tests = re.findall(r"`(\S+)::(test_\w+)`", named)
        assert re.sub(r"`\S+::test_\w+`", "", named).strip(" ,") == "", row
        assert tests, f"no test is named for: {promise.strip()}"
        for path, name in tests:
            assert name in functions_in(TESTS / path), f"{path}::{name} is not there, for: {promise.strip()}"
