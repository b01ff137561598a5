"""What happens in one schedule, and when: drawn from a seed, so that the same seed gives the same schedule again."""

from dataclasses import dataclass
from random import Random

OWNERS = ("alice", "bob")
SPEC_SEEDS = (0, 1)

FAULTS = (
    "kill_trainer",
    "kill_horse",
    "kill_worker",
    "kill_all_of_worker",
    "term_worker",
    "term_worker_twice",
    "term_horse",
    "freeze_trainer",
    "freeze_horse",
    "freeze_worker",
    "freeze_reaper",
    "kill_api",
    "kill_reaper",
    "kill_redis",
    "kill_store",
    "store_errors",
    "store_resets",
    "store_truncates",
    "store_trickles",
)


@dataclass(frozen=True)
class Action:
    """One thing that is done to the system."""

    at_s: float  # after the schedule's start
    kind: str  # submit, cancel, or one of FAULTS
    number: int  # which: of the submission, or of the worker
    seconds: float = 0.0  # how long a server stays away, or a process frozen
    owner: str = ""  # of a submission
    spec_seed: int = 0  # of a submission


def draw(seed: int, number: int, workers: int, lease_s: float) -> tuple[Action, ...]:
    """The actions of one schedule, in order.

    Args:
        seed, number: of the run, and of the schedule in it.
        workers: how many there are to strike.
        lease_s: processes are frozen for shorter and for longer than this.
    """
    random = Random(f"{seed}/{number}")
    submissions = [
        Action(random.uniform(0, 2), "submit", n, owner=random.choice(OWNERS), spec_seed=random.choice(SPEC_SEEDS))
        for n in range(random.randint(1, 3))
    ]
    cancels = [Action(random.uniform(0.5, 12), "cancel", each.number) for each in submissions if random.random() < 0.2]
    faults = [
        Action(random.uniform(1, 12), kind, random.randrange(workers), seconds=random.uniform(0.3, 1.6 * lease_s))
        for kind in random.choices(FAULTS, k=random.randint(1, 3))
    ]
    return tuple(sorted([*submissions, *cancels, *faults], key=lambda action: action.at_s))
