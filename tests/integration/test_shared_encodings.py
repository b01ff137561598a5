"""A second job of the same owner on an empty worker encodes nothing; another owner finds nothing of it anywhere."""

import secrets
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from jobs import events
from jobs.record import JobRecord
from jobs.status import Status
from jobs.uri import S3Uri
from tests.integration.test_main_job import ended, manifest_of, wait_for

pytestmark = pytest.mark.integration


def anew(store, record: JobRecord) -> tuple[int, int]:
    """How many pictures and captions the job made itself, and how many it needed."""
    told = [event.data for event in events.read(store.redis, record.id) if event.kind == "encoded"][-1]
    return told["anew"], told["total"]


def weights_of(storage, record: JobRecord, folder: Path) -> dict[str, np.ndarray]:
    """The adapter that a job has left."""
    (file,) = [file for file in manifest_of(storage, record).files if file.path == "lora_diffusers.safetensors"]
    storage.download(S3Uri.parse(record.output_uri) / file.stored_as, folder / record.id)
    return safetensors.numpy.load_file(folder / record.id)


@pytest.mark.timeout(900)  # four jobs on three workers, one after another
def test_what_one_worker_has_encoded_no_other_encodes_again(store, storage, worker, bucket, make_spec, tmp_path: Path):
    spec = make_spec(dataset={"uri": bucket("encodings", count=2)})
    ann, bob = (f"{name}-{secrets.token_hex(3)}" for name in ("ann", "bob"))

    def carried_out(owner: str, process) -> JobRecord:
        job = store.submit(JobRecord.create(owner, spec))
        record = wait_for(store, job.id, ended, 300)
        assert record.status is Status.SUCCEEDED, record
        return record

    first_worker = worker(data_dir=tmp_path / "first")
    first = carried_out(ann, first_worker)
    first_worker.send_signal(signal.SIGTERM)
    first_worker.wait(30)
    second_worker = worker(data_dir=tmp_path / "second")
    second, other = carried_out(ann, second_worker), carried_out(bob, second_worker)

    made, total = anew(store, first)
    assert made == total == 5  # two pictures, two captions and the empty one
    assert anew(store, second) == (0, total)
    assert anew(store, other) == (total, total), "neither the worker's cache nor the bucket's is shared with others"
    weights = [weights_of(storage, each, tmp_path) for each in (first, second, other)]
    for each in weights[1:]:  # of tensors: the headers of the files tell when they were made
        assert each.keys() == weights[0].keys()
        assert all(np.array_equal(weight, weights[0][name]) for name, weight in each.items())
    second_worker.send_signal(signal.SIGTERM)
    second_worker.wait(30)

    folder = S3Uri("outputs", f"{ann}/.encodings/")
    sound = {each.uri: storage.read(each.uri) for each in storage.list(folder)}
    damaged = bytearray(sound[next(iter(sound))])
    damaged[-1] ^= 1
    storage.write(next(iter(sound)), bytes(damaged))
    third = carried_out(ann, worker(data_dir=tmp_path / "third"))

    assert anew(store, third) == (1, total)
    assert {each.uri: storage.read(each.uri) for each in storage.list(folder)} == sound
