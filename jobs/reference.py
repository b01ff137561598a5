"""The reference pages, made from the fields that they describe: `python -m jobs.reference` writes them.

docs/job-spec.md   every field of the spec
docs/settings.md   every LORAQ_* variable
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from jobs.settings import Settings
from jobs.spec import JobSpec

DOCS = Path(__file__).parent.parent / "docs"

_SPEC_HEAD = """# The job spec, version 1

YAML or JSON. An unknown key, a value out of bounds and a field that loraq does not carry out yet are errors, all named
at once; `loraq validate SPEC` checks without submitting. `jobs/examples/` holds specs to copy, and
`jobs/job-spec.v1.schema.json` is the JSON Schema for an editor. This page is made from `jobs/spec.py`.

| field | default | what it is |
|---|---|---|
"""

_SETTINGS_HEAD = """# Settings

Environment variables, read once when API or worker starts. This page is made from `jobs/settings.py`.

| variable | default | what it is |
|---|---|---|
"""


def pages() -> dict[Path, str]:
    """The reference pages by path."""
    schema = JobSpec.model_json_schema()
    spec_rows = "".join(_row(*row) for row in _spec_rows(schema, schema["$defs"], ""))
    settings_rows = "".join(
        _row(f"LORAQ_{name.upper()}", _shown_setting(field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    )
    return {DOCS / "job-spec.md": _SPEC_HEAD + spec_rows, DOCS / "settings.md": _SETTINGS_HEAD + settings_rows}


def _spec_rows(section: dict[str, Any], sections: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in section["properties"].items():
        options: list[dict[str, Any]] = field.get("anyOf", [field])
        refs = [option["$ref"] for option in options if "$ref" in option]
        if refs:
            yield from _spec_rows(sections[refs[0].rpartition("/")[2]], sections, f"{prefix}{name}.")
        else:
            default = "required" if name in section.get("required", ()) else json.dumps(field.get("default"))
            yield f"{prefix}{name}", default, field["description"] + _bounds(options)
            if ref := field.get("items", {}).get("$ref"):
                yield from _spec_rows(sections[ref.rpartition("/")[2]], sections, f"{prefix}{name}[].")


def _bounds(options: list[dict[str, Any]]) -> str:
    numbers = [option for option in options if option.get("type") in ("integer", "number")]
    if not numbers:
        return ""
    option = numbers[0]
    lowest = option.get("minimum", option.get("exclusiveMinimum"))
    highest = option.get("maximum", option.get("exclusiveMaximum"))
    return "" if lowest is None or highest is None else f" {lowest:g} to {highest:g}."


def _shown_setting(default: Any) -> str:
    if default is None or default == ():
        return "unset"
    if isinstance(default, SecretStr):
        return default.get_secret_value()  # a default is no secret
    names: list[Any] = list(default) if isinstance(default, tuple) else [default]  # pyright: ignore[reportUnknownArgumentType]
    return ",".join(map(str, names))


def _row(name: str, default: str, description: str) -> str:
    return f"| `{name}` | `{default}` | {description} |\n"


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
