"""Known good settings by the size of the card. A preset fills what the spec leaves open and overrides nothing."""

from typing import Literal

from pydantic import JsonValue

PresetName = Literal["12gb", "16gb", "24gb"]

# DESIGN: 512 and rank 4 without EMA fit 12 GB; 768 and rank 8, 16 GB; 1024, rank 16 and EMA, 24 GB.
PRESETS: dict[str, dict[str, JsonValue]] = {
    "12gb": {
        "lora": {"rank": 4},
        "training": {"resolution": 512, "batch_size": 1, "gradient_accumulation": 4, "ema": None},
    },
    "16gb": {
        "lora": {"rank": 8},
        "training": {"resolution": 768, "batch_size": 2, "gradient_accumulation": 2, "ema": None},
    },
    "24gb": {
        "lora": {"rank": 16},
        "training": {"resolution": 1024, "batch_size": 4, "gradient_accumulation": 1, "ema": {"decay": 0.999}},
    },
}

PRESET_GB: dict[str, int] = {"12gb": 12, "16gb": 16, "24gb": 24}
"""The card that each preset is made for."""


def fill(given: dict[str, JsonValue], defaults: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """`given`, with every key that it lacks taken from `defaults`, section by section."""
    filled = dict(given)
    for key, default in defaults.items():
        value = given.get(key)
        if key not in given:
            filled[key] = default
        elif isinstance(value, dict) and isinstance(default, dict):
            filled[key] = fill(value, default)
    return filled
