"""Between a spec as people write it (YAML or JSON text) and a JobSpec: every fault is named at once."""

# pyright: reportUnknownMemberType=false
# PyYAML's stubs type its methods in part.

import json
from collections.abc import Callable, Iterable
from typing import Any, cast

import yaml
from pydantic import JsonValue, ValidationError

from jobs.errors import InvalidSpec, Problem
from jobs.not_yet import not_yet
from jobs.spec import JobSpec

MAX_SPEC_BYTES = 64 * 1024
"""A spec is a page of text; anything larger is a mistake or an attack."""


class _StrictLoader(yaml.SafeLoader):
    """YAML without two surprises: a key given twice, and aliases, which can make a small file enormous."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = cast(Any, self.peek_event()).start_mark
            raise yaml.MarkedYAMLError(problem="YAML aliases (*name) are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is not a word", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


Check = Callable[[JobSpec], Iterable[Problem]]
"""What a caller wants to hold besides; the API asks whether the buckets are open."""


def read_spec(text: str | bytes, *checks: Check) -> JobSpec:
    """The spec in `text`, YAML or JSON.

    Raises:
        InvalidSpec: with every field at fault, also those that loraq does not carry out yet or that fail in `checks`.
    """
    return parse_spec(read_yaml(text), *checks)


def read_yaml(text: str | bytes) -> JsonValue:
    """The values in `text`, whatever they are.

    Raises:
        InvalidSpec: it is no YAML, or longer than a spec may be.
    """
    raw = text.encode() if isinstance(text, str) else text
    if len(raw) > MAX_SPEC_BYTES:
        raise InvalidSpec([Problem("", f"The spec has {len(raw)} bytes; the limit is {MAX_SPEC_BYTES}.")])
    try:
        return yaml.load(raw, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        at = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InvalidSpec([Problem("", f"The spec is not YAML{at}: {error.problem}.")]) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        first_line = str(error).partition("\n")[0] or type(error).__name__
        raise InvalidSpec([Problem("", f"The spec is not YAML: {first_line}.")]) from None


def parse_spec(data: JsonValue, *checks: Check) -> JobSpec:
    """The spec in `data`, as JSON values.

    Raises:
        InvalidSpec: with every field at fault, also those that loraq does not carry out yet or that fail in `checks`.
    """
    if not isinstance(data, dict):
        raise InvalidSpec([Problem("", "The spec is not a mapping of fields. jobs/examples/ holds specs to copy.")])
    try:
        spec = JobSpec.model_validate(data)
    except ValidationError as error:
        raise InvalidSpec([_problem(cast(dict[str, Any], each)) for each in error.errors()]) from None
    if problems := [problem for check in (not_yet, *checks) for problem in check(spec)]:
        raise InvalidSpec(problems)
    return spec


def with_steps(spec: JobSpec, steps: int) -> JobSpec:
    """`spec` with another number of steps.

    Raises:
        InvalidSpec: its other fields do not go with so many.
    """
    data = spec.model_dump(mode="json")
    return parse_spec(data | {"training": data["training"] | {"steps": steps}})


def write_spec(spec: JobSpec) -> str:
    """`spec` as YAML, every field with its value, in the order of the reference page."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def json_schema() -> str:
    """The JSON Schema of version 1, as committed in jobs/job-spec.v1.schema.json."""
    schema = JobSpec.model_json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(schema, indent=2) + "\n"


def _problem(error: dict[str, Any]) -> Problem:
    """One fault of pydantic's, in a person's words: which field, which value, which limit, what to do."""
    field = ".".join(
        str(part) for part in error["loc"] if part not in ("float", "literal['auto']", "constrained-float")
    )
    if error["type"] == "extra_forbidden":
        known = _fields_at(error["loc"][:-1])
        return Problem(field, f"is not a field of the spec; here are: {', '.join(known)}.")
    if error["type"] == "missing":
        return Problem(field, "is missing.")
    message = str(error["msg"]).removeprefix("Value error, ")
    value = error["input"]
    if isinstance(value, str | int | float | bool) or value is None:
        shown = json.dumps(value)
        message = f"is {shown if len(shown) <= 80 else shown[:77] + '...'}: {message[0].lower()}{message[1:]}"
    return Problem(field, message if message.endswith(".") else f"{message}.")


def _fields_at(location: tuple[str | int, ...]) -> list[str]:
    """The field names of the section at `location`."""
    section: Any = JobSpec
    for part in location:
        if isinstance(part, int):
            continue  # which of a list: all have the same fields
        annotation = section.model_fields[part].annotation
        options = getattr(annotation, "__args__", (annotation,))
        section = next(option for option in options if hasattr(option, "model_fields"))
    return list(section.model_fields)


if __name__ == "__main__":
    print(json_schema(), end="")
