"""What of a spec goes into files that are given away: all but what gives access to something."""

import json

import pytest

from jobs.published import published_spec
from jobs.spec import JobSpec
from jobs.spec_text import read_spec

SPEC = {
    "version": 1,
    "name": "ginger-cat",
    "base_model": "s3://models/a.safetensors",
    "dataset": {"uri": "s3://datasets/a b/", "trigger": "ohwx: what? #1"},
    "samples": {"prompts": ["a cat, see https://example.com/?q=1", "größer"]},
    "output": {"uri": "s3://outputs/a/", "metadata": {"license": "https://example.com/licence"}},
}


def test_it_is_the_spec_as_it_was_given():
    spec = read_spec(json.dumps(SPEC))
    assert read_spec(published_spec(spec)) == spec


def test_the_webhook_is_nobodys_business():
    spec = read_spec(json.dumps(SPEC | {"webhook": "https://hooks.example.com/services/T0/B0/s3cret"}))
    told = published_spec(spec)
    assert "example.com/services" not in told
    assert "webhook" not in told
    assert read_spec(told) == spec.model_copy(update={"webhook": None})


@pytest.mark.parametrize("field", ["base_model", "dataset.uri", "dataset.regularisation.uri", "lora.init_from"])
@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://models/a.safetensors?X-Amz-Credential=s3cret&X-Amz-Signature=s3cret", "s3://models/a.safetensors"),
        ("s3://me:s3cret@models/a.safetensors", "s3://models/a.safetensors"),
        ("s3://s3cret@models/a@b.safetensors#s3cret", "s3://models/a@b.safetensors"),
        ("file:///models/a.safetensors", "file:///models/a.safetensors"),
        ("hf://token:s3cret@org/name@main", "hf://org/name@main"),
    ],
)
def test_an_address_has_neither_user_nor_password_nor_query(field: str, address: str, shown: str):
    data = json.loads(json.dumps(SPEC))
    *path, last = field.split(".")
    section = data
    for name in path:
        section = section.setdefault(name, {})
    section[last] = address
    told = published_spec(JobSpec.model_validate(data))
    assert "s3cret" not in told
    value = json.loads(told)
    for name in field.split("."):
        value = value[name]
    assert value == shown
