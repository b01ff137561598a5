"""The spec: what it accepts, what it refuses, and that every fault is named at once."""

import json
from pathlib import Path

import pytest

from jobs.errors import InvalidSpec
from jobs.not_yet import not_yet
from jobs.presets import PRESETS
from jobs.spec import JobSpec
from jobs.spec_text import MAX_SPEC_BYTES, json_schema, parse_spec, read_spec, write_spec

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "jobs" / "examples").glob("*.yaml"))


def minimal(**changes):
    return {
        "version": 1,
        "name": "ginger-cat",
        "base_model": "s3://models/sd_xl_base_1.0.safetensors",
        "dataset": {"uri": "s3://datasets/ginger-cat/"},
        "output": {"uri": "s3://outputs/ginger-cat/"},
        **changes,
    }


def faults(data) -> dict[str, str]:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(data)
    return {problem.field: problem.message for problem in caught.value.problems}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_valid_and_survive_a_round_trip(path):
    spec = read_spec(path.read_text())

    assert read_spec(write_spec(spec)) == spec


def test_all_faults_are_named_at_once_with_field_value_and_limit():
    data = minimal(name="Ginger Cat", lora={"rank": 0, "targts": "qkv"}, training={"steps": "many"})

    found = faults(data)

    assert set(found) == {"name", "lora.rank", "lora.targts", "training.steps"}
    assert "0" in found["lora.rank"]
    assert "rank, alpha, targets" in found["lora.targts"]
    assert '"many"' in found["training.steps"]


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_a_number_that_is_not_finite_is_refused(value):
    text = write_spec(parse_spec(minimal())).replace("learning_rate: 0.0001", f"learning_rate: {value}")

    with pytest.raises(InvalidSpec):
        read_spec(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: a\nname: b", "given twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("- 1", "not a mapping"),
        ("a: [", "line 1"),
        ("1: 2", "not a word"),
        ("{" * 5000, "not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
        ("x: " + "y" * MAX_SPEC_BYTES, "limit"),
    ],
)
def test_text_that_is_no_spec_is_explained(text, says):
    with pytest.raises(InvalidSpec, match=says):
        read_spec(text)


def test_every_fault_of_an_adapter_is_named_at_once():
    found = faults(
        minimal(
            lora={
                "patterns": ["re:(", "", "conv_in"],
                "overrides": [{"match": "a"}, {"match": "re:[", "rank": 0}, {"match": "a", "rnak": 1}],
                "dropout": 1,
                "text_encoders": {"learning_rate": -1},
            }
        )
    )

    assert set(found) == {
        "lora.patterns.0",
        "lora.patterns.1",
        "lora.overrides.0",
        "lora.overrides.1.match",
        "lora.overrides.1.rank",
        "lora.overrides.2.rnak",
        "lora.dropout",
        "lora.text_encoders.learning_rate",
    }
    assert "no regular expression" in found["lora.patterns.0"]
    assert "here are: match, rank, alpha" in found["lora.overrides.2.rnak"]
    assert "nothing would be trained" in faults(minimal(lora={"targets": "none"}))["lora"]
    parse_spec(minimal(lora={"targets": "none", "text_encoders": {}}))


def test_prodigy_has_one_step_size_for_u_net_and_text_encoders():
    prodigy = {"optimizer": {"name": "prodigy", "learning_rate": 1.0}}
    parse_spec(minimal(lora={"text_encoders": {}}, training=prodigy))
    parse_spec(minimal(lora={"text_encoders": {"learning_rate": 1.0}}, training=prodigy))
    found = faults(minimal(lora={"text_encoders": {"learning_rate": 0.5}}, training=prodigy))
    assert "is 0.5, but prodigy has one step size for all: leave it out" in found[""]


@pytest.mark.parametrize(
    ("section", "value", "field"),
    [
        ("base_model", "hf://stabilityai/sdxl@main", "base_model"),
        ("dataset", {"uri": "hf://me/cats"}, "dataset.uri"),
        ("lora", {"init_from": "hf://me/cat"}, "lora.init_from"),
        ("memory", {"budget_gib": 4}, "memory.budget_gib"),
        ("memory", {"base_dtype": "int8"}, "memory.base_dtype"),
        ("memory", {"streamed_blocks": 60}, "memory.streamed_blocks"),
    ],
)
def test_what_is_not_carried_out_yet_is_refused_and_never_ignored(section, value, field):
    assert set(faults(minimal(**{section: value}))) == {field}


@pytest.mark.parametrize(
    ("dataset", "field", "says"),
    [
        ({"captions": {"keep_tokens": 3}}, "dataset.captions", "keep_tokens belongs to shuffle_tags"),
        ({"captions": {"shuffle_orders": 3}}, "dataset.captions", "shuffle_orders belongs to shuffle_tags"),
        ({"layout": "kohya", "repeats": {"a": 2}}, "dataset", "repeats belongs to the plain layout"),
        ({"repeats": {"/a": 2}}, "dataset.repeats./a.[key]", "pattern"),
        ({"repeats": {"a": 0}}, "dataset.repeats.a", "greater than or equal to 1"),
        ({"uri": "s3://d1/c-{a..b}.tar"}, "dataset.uri", "is no range of archives"),
        ({"regularisation": {"uri": "s3://d1/{0..1}"}}, "dataset.regularisation.uri", "is no range of archives"),
        ({"uri": "s3://d1/c-{0..1}.tar", "layout": "kohya"}, "dataset", "shards have the webdataset layout"),
        ({"masks": {"source": "red"}}, "dataset.masks.source", "'alpha' or 'folder'"),
    ],
)
def test_what_makes_no_sense_of_a_dataset_is_refused(dataset, field, says):
    told = faults(minimal(dataset={"uri": "s3://d1/c/"} | dataset))
    assert set(told) == {field}
    assert says in told[field]


def test_steps_of_bucket_sizes_fit_the_resolution():
    spec = minimal(dataset={"uri": "s3://d1/c/", "bucket_step_px": 64}, training={"resolution": 96})
    assert "use a multiple of it" in faults(spec)[""]


def test_a_preset_fills_what_is_open_and_overrides_nothing():
    spec = parse_spec(minimal(preset="24gb", lora={"alpha": 8}, training={"resolution": 512}))

    assert spec.lora.rank == PRESETS["24gb"]["lora"]["rank"]
    assert spec.lora.alpha == 8
    assert spec.training.resolution == 512
    assert spec.training.ema is not None


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_spec_that_is_carried_out(name):
    assert list(not_yet(parse_spec(minimal(preset=name)))) == []


def test_every_field_is_described_and_every_number_and_text_is_bounded():
    def walk(schema, path):
        for name, field in schema.get("properties", {}).items():
            where = f"{path}{name}"
            options = field.get("anyOf", [field])
            for option in options:
                if "$ref" in option:
                    yield from walk(definitions[option["$ref"].rpartition("/")[2]], f"{where}.")
                elif option.get("type") in ("integer", "number") and not {"const", "enum"} & set(option):
                    yield where, {"maximum", "exclusiveMaximum"} & set(option), "has no upper bound"
                elif option.get("type") == "string" and "enum" not in option and "const" not in option:
                    yield where, {"maxLength", "pattern"} & set(option), "is unbounded text"
                elif option.get("type") == "array":
                    yield where, {"maxItems"} & set(option), "is an unbounded list"
            if not any("$ref" in option for option in options):
                yield where, field.get("description"), "has no description"

    schema = JobSpec.model_json_schema()
    definitions = schema["$defs"]

    assert [f"{where} {fault}" for where, proof, fault in walk(schema, "") if not proof] == []


def test_the_committed_schema_is_the_spec_s():
    committed = (ROOT / "jobs" / "job-spec.v1.schema.json").read_text()

    assert committed == json_schema(), "run: python -m jobs.spec_text > jobs/job-spec.v1.schema.json"
    assert json.loads(committed)["$defs"]["LoRASpec"]["additionalProperties"] is False


def fine_tuning(**changes):
    """A spec of one that is valid, with other sections."""
    training = {"optimizer": {"name": "adamw", "learning_rate": 1e-5}}
    return minimal(**{"fine_tuning": {"weights": "bfloat16"}, "training": training} | changes)


def test_fine_tuning_survives_a_round_trip():
    spec = parse_spec(fine_tuning())

    assert spec.fine_tuning.weights == "bfloat16"
    assert read_spec(write_spec(spec)) == spec  # the copy names every field, those of lora too


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lora": {"rank": 8}}, "leave one of them out"),
        ({"preset": "24gb"}, "preset 24gb is made for a LoRA"),
        ({"training": {"optimizer": {"name": "adamw"}}}, "1e-5 is usual"),
        ({"training": {"optimizer": {"learning_rate": 1e-5}, "ema": {}}}, "training.ema averages a LoRA"),
        ({"output": {"uri": "s3://outputs/cat/", "formats": ["kohya"]}}, "leave formats out"),
        ({"training": {"optimizer": {"name": "prodigy", "learning_rate": 1.0}}}, "use adamw, adamw8bit, adafactor"),
    ],
)
def test_what_does_not_go_with_fine_tuning_is_refused(changes, says):
    assert says in " ".join(faults(fine_tuning(**changes)).values())


def test_fine_tuning_that_is_too_large_is_told_what_makes_it_smaller():
    found = faults(fine_tuning(memory={"budget_gib": 12}))

    assert set(found) == {"memory.budget_gib"}
    assert "optimizer adafactor" in found["memory.budget_gib"]
