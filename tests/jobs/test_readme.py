"""The README shows the whole tree."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_module_has_its_line_in_the_tree():
    tree = (ROOT / "README.md").read_text().partition("## The tree")[2]
    modules = {
        path.relative_to(ROOT / package).as_posix()
        for package in ("jobs", "api", "worker")
        for path in (ROOT / package).rglob("*.py")
        if not path.name.startswith("__") and path.parent.name != "tokenizer"
    }

    assert sorted(module for module in modules if f"  {module} " not in tree) == []
