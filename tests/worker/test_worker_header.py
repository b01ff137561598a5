"""What a job's files say of it is what its spec and its record say."""

import json
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import pytest

from jobs.record import JobRecord, begin_attempt
from jobs.spec_text import parse_spec, read_spec
from worker.header import header_config, of_job


def spec_with(**changes: Any):
    return parse_spec(
        {
            "version": 1,
            "name": "ginger-cat",
            "base_model": "s3://models/sd_xl_base_1.0.safetensors",
            "dataset": {"uri": "s3://datasets/cats/"},
            "output": {"uri": "s3://outputs/a/"},
        }
        | changes
    )


def test_a_spec_is_told_by_its_names_and_whole():
    spec = spec_with(webhook="https://example.com/s3cret")
    header = header_config(spec)
    assert (header.name, header.title) == ("ginger-cat", "ginger-cat")
    assert (header.base_model, header.dataset) == ("sd_xl_base_1.0.safetensors", "cats")
    entries = dict(header.entries)
    assert entries.keys() == {"loraq_version", "loraq_spec"}, "nothing is told that nobody has said"
    assert entries["loraq_version"] == version("loraq")
    assert read_spec(entries["loraq_spec"]) == spec.model_copy(update={"webhook": None})


@pytest.mark.parametrize(
    ("field", "value", "key", "told"),
    [
        ("author", "Jo", "modelspec.author", "Jo"),
        ("description", "Of *one* cat.", "modelspec.description", "Of *one* cat."),
        ("tags", ["Animal", "Cat"], "modelspec.tags", "Animal,Cat"),
        ("license", "CC0", "modelspec.license", "CC0"),
        ("usage_hint", "strength 0.8", "modelspec.usage_hint", "strength 0.8"),
        ("comment", "second try", "ss_training_comment", "second try"),
    ],
)
def test_what_the_spec_tells_of_the_file_is_an_entry(field: str, value: object, key: str, told: str):
    spec = spec_with(output={"uri": "s3://outputs/a/", "metadata": {field: value}})
    assert dict(header_config(spec).entries)[key] == told


def test_a_title_is_for_people():
    header = header_config(spec_with(output={"uri": "s3://outputs/a/", "metadata": {"title": "Ginger cat, v2"}}))
    assert (header.name, header.title) == ("ginger-cat", "Ginger cat, v2")


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://datasets/me/cats.tar.gz", "cats"),
        ("s3://datasets/cats-{000..007}.tar", "cats-000"),
        ("file:///photos/cats/", "cats"),
        ("s3://cats/", "cats"),
    ],
)
def test_a_dataset_has_the_name_of_its_folder_or_archive(uri: str, name: str):
    assert header_config(spec_with(dataset={"uri": uri})).dataset == name


def test_all_attempts_at_a_job_tell_its_beginning_and_one_number():
    first = begin_attempt(JobRecord.create("me", spec_with()), "worker-1")
    assert first.attempt is not None
    later = {"number": 2, "started_at": first.attempt.started_at + timedelta(hours=1)}
    again = first.model_copy(update={"attempts": (*first.attempts, first.attempt.model_copy(update=later))})
    header = of_job(header_config(first.spec), first)
    assert header.started_at_s == first.attempts[0].started_at.timestamp()
    assert header == of_job(header_config(again.spec), again)
    session = dict(header.entries)["ss_session_id"]
    assert 0 <= int(session) < 2**32
    other = begin_attempt(JobRecord.create("me", spec_with()), "worker-1")
    assert dict(of_job(header_config(other.spec), other).entries)["ss_session_id"] != session
    assert first.id not in json.dumps(header.entries)
