"""TrainerConfig to JSON and back, strictly: a key unknown or missing or of another type is an error; all are named."""

import dataclasses
import json
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from worker.loop.config import TrainerConfig


def write_config(config: TrainerConfig, path: Path) -> None:
    """Write CONFIG.json for `python -m worker.trainer`."""
    path.write_text(json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_config(path: Path) -> TrainerConfig:
    """Read CONFIG.json. Raises ValueError that lists every field at fault, one a line."""
    faults: list[str] = []
    try:
        config = _read(TrainerConfig, json.loads(path.read_text(encoding="utf-8")), "", faults)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if faults:
        raise ValueError(f"{path} is not a trainer configuration:\n" + "\n".join(faults))
    assert isinstance(config, TrainerConfig)
    return config


def _read(kind: Any, value: Any, where: str, faults: list[str]) -> Any:
    """Turn a JSON value into the type `kind`; on a mismatch note a fault and return None."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _read_dataclass(kind, value, where, faults)
    if origin is Literal and value in arguments:
        return value
    if origin in (Union, types.UnionType):  # only `something | None` occurs
        return None if value is None else _read(arguments[0], value, where, faults)
    if origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis:
            return tuple(_read(arguments[0], item, f"{where}[{i}]", faults) for i, item in enumerate(value))
        if len(value) == len(arguments):
            pairs = zip(arguments, value, strict=True)
            return tuple(_read(argument, item, f"{where}[{i}]", faults) for i, (argument, item) in enumerate(pairs))
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is kind:  # not isinstance: a JSON true is no integer
        return value
    faults.append(f"{where or 'the whole file'} is {value!r}, but should be {getattr(kind, '__name__', kind)}.")
    return None


def _read_dataclass(kind: Any, value: dict[str, Any], where: str, faults: list[str]) -> Any:
    prefix = f"{where}." if where else ""
    hints = get_type_hints(kind)
    missing = [f.name for f in dataclasses.fields(kind) if f.name not in value]
    faults += [f"{prefix}{name} is missing." for name in missing]
    faults += [f"{prefix}{name} is unknown." for name in value if name not in hints]
    read = {name: _read(hints[name], value[name], prefix + name, faults) for name in hints if name in value}
    return None if missing or faults else kind(**read)
