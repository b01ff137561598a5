"""What a worker registers, and why one without GPU takes no job."""

import pytest

from jobs.gpu_class import CPU, NONE
from jobs.gpus import Gpu, Gpus
from jobs.settings import Settings
from worker.own_class import own_class

NO_CARD = Gpus((), "the NVIDIA driver does not answer (NVML Shared Library Not Found)")


def cards(*gib: float) -> Gpus:
    return Gpus(tuple(Gpu(f"GPU-{n}", "A card", "580.1", int(each * 2**30), 0, 0.0) for n, each in enumerate(gib)))


def test_the_cards_decide():
    assert own_class(Settings(), cards(23.6)).gpu_class.name == "24gb"
    assert own_class(Settings(), cards(79.6, 79.6)).gpu_class.name == "80gb-x2"


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_without_gpu_it_takes_nothing_and_says_what_to_do(device):
    own = own_class(Settings(device=device), NO_CARD)

    assert own.gpu_class == NONE
    assert "takes no job" in own.refuses
    assert f"does not answer (NVML Shared Library Not Found), and LORAQ_DEVICE is {device}" in own.refuses
    assert "set LORAQ_DEVICE=cpu" in own.refuses


def test_a_card_that_is_too_small_is_named_with_the_limit():
    own = own_class(Settings(), cards(2.0))

    assert own.gpu_class == NONE
    assert "A card has 2.0 GiB, and loraq needs 3.7" in own.refuses


def test_told_to_use_its_cpu_it_takes_what_a_cpu_can_bear():
    own = own_class(Settings(device="cpu"), NO_CARD)

    assert (own.gpu_class, own.refuses) == (CPU, None)
    with pytest.raises(ValueError, match="is 24gb-x5, but a CPU stands in for 4 GPUs at most"):
        own_class(Settings(worker_class="24gb-x5", device="cpu"), NO_CARD)


def test_it_may_take_smaller_jobs_than_its_card_could_and_no_larger_ones():
    assert own_class(Settings(worker_class="12gb"), cards(23.6)).gpu_class.name == "12gb"
    assert own_class(Settings(worker_class="24gb", device="cpu"), NO_CARD).gpu_class.name == "24gb"  # to try it out
    for wanted in ("48gb", "24gb-x2", "cpu"):
        with pytest.raises(ValueError, match=f"is {wanted}, but this worker's cards are 24gb"):
            own_class(Settings(worker_class=wanted), cards(23.6))
