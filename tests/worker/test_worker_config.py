"""Every field of the spec is used: it changes what the trainer is told, or stands here with the place that reads it."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.spec_text import parse_spec
from worker.config import Places, trainer_config

PLACES = Places(
    base_model=Path("/base"),
    dataset=Path("/data"),
    regularisation=Path("/regularisation"),
    init_from=None,
    output=Path("/out"),
    cache=Path("/cache"),
)

# Another valid value for each field that the trainer is told.
TOLD = {
    "dataset.layout": "kohya",
    "dataset.trigger": "ohwx",
    "dataset.captions.missing": "empty",
    "dataset.captions.dropout": 0.5,
    "dataset.captions.shuffle_tags": True,
    "dataset.captions.keep_tokens": 3,
    "dataset.captions.shuffle_orders": 3,
    "dataset.captions.max_tokens": 150,
    "dataset.captions.too_long": "cut",
    "dataset.flip": True,
    "dataset.latents": "drawn",
    "dataset.bucket_step_px": 32,
    "dataset.masks.source": "alpha",
    "dataset.masks.background": 0.5,
    "dataset.repeats": {"portraits": 3},
    "dataset.regularisation.layout": "kohya",
    "dataset.regularisation.weight": 0.5,
    "lora.rank": 7,
    "lora.alpha": 3.0,
    "lora.targets": "transformer",
    "lora.patterns": ["conv_in"],
    "lora.overrides": [{"match": "*attn2*", "rank": 8}],
    "lora.dropout": 0.5,
    "lora.rank_dropout": 0.5,
    "lora.rslora": True,
    "lora.dora": True,
    "lora.text_encoders.targets": "attention",
    "lora.text_encoders.learning_rate": 5e-5,
    "fine_tuning.weights": "bfloat16",
    "training.resolution": 512,
    "training.batch_size": 3,
    "training.gradient_accumulation": 5,
    "training.steps": 77,
    "training.seed": 9,
    "training.optimizer.name": "lion",
    "training.optimizer.learning_rate": 0.5,
    "training.optimizer.weight_decay": 0.5,
    "training.lr_schedule.name": "constant",
    "training.lr_schedule.warmup_steps": 3,
    "training.lr_schedule.cycles": 2,
    "training.max_grad_norm": None,
    "training.min_snr_gamma": 5,
    "training.debiased_estimation": True,
    "training.loss.name": "huber",
    "training.loss.huber_c": 0.5,
    "training.noise_offset": 0.05,
    "training.timesteps.min": 10,
    "training.timesteps.max": 900,
    "training.prediction": "v_prediction",
    "training.zero_terminal_snr": True,
    "training.ema.decay": 0.5,
    "training.ema.device": "cpu",
    "training.validation.pictures": 3,
    "training.validation.share": 0.25,
    "training.validation.every_n_steps": 7,
    "memory.checkpointing": "none",
    "memory.base_dtype": "bfloat16",
    "samples.every_n_steps": 5,
    "samples.prompts": ["a cat"],
    "output.formats": ["kohya"],
    "output.metadata.title": "Ginger cat",
    "output.metadata.author": "Jo",
    "output.metadata.description": "Of one cat.",
    "output.metadata.tags": ["Animal"],
    "output.metadata.license": "CC0",
    "output.metadata.usage_hint": "strength 0.8",
    "output.metadata.comment": "second try",
}

# Of sections that are off when they are left out.
DEFAULTS = {
    "fine_tuning.weights": "float32",
    "lora.text_encoders.targets": "transformer",
    "lora.text_encoders.learning_rate": None,
    "dataset.regularisation.layout": "plain",
    "dataset.regularisation.weight": 1.0,
    "dataset.masks.source": "folder",
    "dataset.masks.background": 0.0,
    "dataset.captions.keep_tokens": 1,
    "dataset.captions.shuffle_orders": 8,
    "training.validation.every_n_steps": 100,
}

READ_ELSEWHERE = {
    "version": "jobs/spec.py: there is one",
    "name": "api/cli.py and every list",
    "preset": "jobs/presets.py",
    "base_model": "worker/inputs.py",
    "lora.init_from": "worker/inputs.py, and Places.init_from, tested below",
    "dataset.uri": "worker/inputs.py",
    "dataset.regularisation.uri": "worker/inputs.py",
    "output.uri": "jobs/record.py",
    "priority": "jobs/store.py",
    "gpus": "worker/attempt.py",
    "max_duration_s": "worker/lease.py",
    "memory.budget_gib": "jobs/needs.py",
    "memory.streamed_blocks": "jobs/not_yet.py",
    "checkpoints.every_n_steps": "jobs/not_yet.py",
    "checkpoints.keep": "jobs/not_yet.py",
    "webhook": "jobs/not_yet.py",
}


# What must be said besides, as such a field says nothing without it.
REQUIRED_WITH = {
    "fine_tuning.": ("training.optimizer", {"learning_rate": 1e-5}),
    "dataset.regularisation.": ("dataset.regularisation", {"uri": "s3://datasets/b/"}),
    "dataset.masks.": ("dataset.masks", {"source": "folder"}),
    "dataset.captions.keep_tokens": ("dataset.captions", {"shuffle_tags": True}),
    "dataset.captions.shuffle_orders": ("dataset.captions", {"shuffle_tags": True}),
    "training.validation.every_n_steps": ("training.validation", {"pictures": 3}),
}


def spec_with(field: str | None = None, value: object = None) -> JobSpec:
    data: dict = {
        "version": 1,
        "name": "a",
        "base_model": "s3://models/a.safetensors",
        "dataset": {"uri": "s3://datasets/a/"},
        "output": {"uri": "s3://outputs/a/"},
    }
    for start, (name, given) in REQUIRED_WITH.items():
        if field is not None and field.startswith(start):
            section, _, key = name.partition(".")
            data.setdefault(section, {})[key] = dict(given)
    if field is not None:
        section = data
        *path, last = field.split(".")
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return parse_spec(data)


def leaves(schema: dict, definitions: dict, prefix: str = ""):
    for name, field in schema["properties"].items():
        refs = [option["$ref"] for option in field.get("anyOf", [field]) if "$ref" in option]
        if refs:
            yield from leaves(definitions[refs[0].rpartition("/")[2]], definitions, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_no_field_is_forgotten():
    schema = JobSpec.model_json_schema()

    assert set(leaves(schema, schema["$defs"])) == set(TOLD) | set(READ_ELSEWHERE)


def test_the_adapter_to_go_on_from_is_told_by_its_place_here():
    spec = spec_with("lora.init_from", "s3://models/a.safetensors")
    there = replace(PLACES, init_from=Path("/downloads/a.safetensors"))

    assert trainer_config(spec, there, Settings()).lora.init_from == "/downloads/a.safetensors"
    assert trainer_config(spec_with(), PLACES, Settings()).lora.init_from is None


@pytest.mark.parametrize("field", TOLD)
def test_a_field_changes_what_the_trainer_is_told(field):
    settings = Settings()

    changed = trainer_config(spec_with(field, TOLD[field]), PLACES, settings)
    default = spec_with(field, DEFAULTS[field]) if field in DEFAULTS else spec_with()

    assert changed != trainer_config(default, PLACES, settings)


def test_shards_have_the_webdataset_layout():
    spec = spec_with("dataset.regularisation.uri", "s3://datasets/b-{0..3}.tar")
    config = trainer_config(spec, PLACES, Settings()).dataset
    assert config.regularisation is not None
    assert (config.layout, config.regularisation.layout) == ("plain", "webdataset")
    assert (
        trainer_config(spec_with("dataset.uri", "s3://d1/{0..3}.tar"), PLACES, Settings()).dataset.layout
        == "webdataset"
    )
