"""One job on two containers, each a machine of its own with a rank: the same weights, to the bit, as two ranks on one.

scripts/e2e runs it. That two ranks equal one with twice the batch is shown by tests/loop/test_ranks.py.
"""

import os
import time
from collections.abc import Callable, Iterator

import pytest
import safetensors.numpy
import yaml

from jobs.status import Status
from tests.e2e.stack import ROOT, DockerStack

pytestmark = [
    pytest.mark.skipif("LORAQ_E2E" not in os.environ, reason="builds images for minutes: scripts/e2e runs it"),
    pytest.mark.timeout(3000),
]

STEPS = 80
END_S = 900.0  # a busy machine takes that long
SPEC = {
    "version": 1,
    "name": "two-nodes",
    "base_model": "s3://models/tiny.safetensors",
    "dataset": {"uri": "s3://datasets/filled-in-by-the-upload/", "captions": {"dropout": 0.3}},
    "training": {"resolution": 64, "steps": STEPS, "seed": 7},
    "checkpoints": {"every_n_steps": 20},
    "gpus": 2,
    "output": {"uri": "s3://outputs/e2e/"},
}
Weights = dict[str, bytes]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerStack]:
    """Everything up, with one worker, and the tiny base model in its bucket."""
    from worker.model.tiny import write_tiny_base  # here: collecting this file imports no torch

    stack = DockerStack(tmp_path_factory.mktemp("nodes"))
    base = write_tiny_base(stack.folder / "tiny", layout="single_file")["single_file"]
    try:
        stack.compose("build")
        up(stack)
        command = ("exec", "-T", "api", "loraq", "add-model", "-", "--name", "tiny.safetensors")
        stack.compose(*command, stdin=base.read_bytes())
        yield stack
    finally:
        print(stack.compose("logs", "--no-color", "--tail", "60"))
        stack.remove()


def up(stack: DockerStack) -> None:
    stack.compose("up", "-d", "--wait", "--wait-timeout", "180")


@pytest.fixture(scope="module")
def submit(stack: DockerStack) -> Callable[[], str]:
    """Submits the job with eight photographs; gives its id."""
    spec = stack.folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(SPEC))
    return lambda: stack.submitted(spec, ROOT / "jobs/examples/photos")


@pytest.fixture(scope="module")
def on_one(stack: DockerStack, submit: Callable[[], str]) -> Weights:
    """What two ranks on one node make of it."""
    job = submit()
    assert stack.until_ended(job, END_S).status is Status.SUCCEEDED
    return weights(stack, job)


@pytest.fixture(scope="module")
def two(stack: DockerStack, on_one: Weights) -> DockerStack:
    """From here on there are two nodes."""
    stack.files = (*stack.files, "tests/e2e/compose.nodes.yml")
    up(stack)
    return stack


def weights(stack: DockerStack, job: str) -> Weights:
    target = stack.folder / job
    stack.loraq("pull", job, "--to", str(target))
    tensors = safetensors.numpy.load_file(next(target.rglob("lora.safetensors")))
    return {name: tensor.tobytes() for name, tensor in tensors.items()}


def said(stack: DockerStack) -> str:
    return stack.compose("logs", "--no-color", "joining")


def test_two_nodes_make_the_weights_of_one_to_the_bit(two: DockerStack, submit, on_one: Weights) -> None:
    job = submit()
    ended = two.until_ended(job, END_S)

    assert (ended.status, len(ended.attempts)) == (Status.SUCCEEDED, 1)
    assert "Machine 1 of 2 trains /data/" in said(two)
    assert weights(two, job) == on_one


def test_a_node_that_dies_ends_the_attempt_and_the_next_one_goes_on(two: DockerStack, submit, on_one: Weights) -> None:
    job = submit()
    two.until_step(job, 30)
    two.docker("kill", "--signal", "KILL", *two.containers("joining"))
    with two.client() as loraq:
        deadline = time.monotonic() + END_S
        while (found := loraq.get(job)).attempts[0].failure is None:
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
    up(two)
    ended = two.until_ended(job, END_S)

    assert (found.attempts[0].failure.reason, found.attempts[0].failure.reason.retryable) == ("crashed", True)
    assert "PeerLost" in found.attempts[0].failure.message
    assert ended.status is Status.SUCCEEDED
    assert ended.attempts[-1].resumed_from_step >= 20
    assert weights(two, job) == on_one
