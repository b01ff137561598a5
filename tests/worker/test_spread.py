"""Where a job's ranks go: on this machine while it has room, else in equal parts on all."""

import pytest

from jobs.settings import Settings
from worker.spread import Spread, spread

POINT = "first:29400"
TWO_OF_EIGHT = Settings(nodes=2, rendezvous=POINT, device="cuda", worker_class="80gb-x16")


@pytest.mark.parametrize(
    ("gpus", "expected"), [(1, Spread(1)), (8, Spread(8)), (10, Spread(5, 2, POINT)), (16, Spread(8, 2, POINT))]
)
def test_a_job_stays_on_one_machine_while_that_has_room(gpus: int, expected: Spread) -> None:
    assert spread(gpus, TWO_OF_EIGHT) == expected


def test_a_number_that_machines_cannot_share_is_left_to_the_first_which_says_what_it_lacks() -> None:
    assert spread(9, TWO_OF_EIGHT) == Spread(9)


def test_without_gpus_a_machine_counts_as_one_with_one() -> None:
    settings = Settings(nodes=2, rendezvous=POINT, device="cpu", worker_class="cpu")
    assert (spread(1, settings), spread(2, settings)) == (Spread(1), Spread(1, 2, POINT))
    assert spread(2, Settings(device="cpu", worker_class="cpu")) == Spread(2)


def test_the_program_is_one_trainer_or_torchrun() -> None:
    assert Spread(1).program() == ["worker.trainer"]
    assert Spread(4).program() == ["worker.launch", "--gpus=4"]
    assert Spread(1, 2, POINT).program() == ["worker.launch", "--gpus=1", "--machines=2", "--rendezvous=first:29400"]


def test_several_machines_meet_somewhere() -> None:
    with pytest.raises(ValueError, match="LORAQ_NODES is 2, and LORAQ_RENDEZVOUS is not set"):
        Settings(nodes=2)
