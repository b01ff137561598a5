"""The reference pages show every field as it is."""

import pytest

from jobs.reference import pages


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_the_page_is_up_to_date(path):
    assert path.read_text(encoding="utf-8") == pages()[path], "run: python -m jobs.reference"
