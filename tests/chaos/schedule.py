"""What happens in one schedule, and when: drawn from a seed, so that the same seed gives the same schedule again."""

from dataclasses import dataclass
from random import Random

OWNERS = ("alice", "bob")
SPEC_SEEDS = (0, 1)

REQUESTS = ("submit", "repeat", "cancel")
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
    "freeze_api",
    "freeze_redis",
    "freeze_store",
    "kill_api",
    "kill_reaper",
    "kill_redis",
    "kill_store",
    "store_errors",
    "store_resets",
    "store_truncates",
    "store_trickles",
)


STAGES = {"start": 4.0, "preparing": 2.0, "training": 2.0, "checkpoint": 0.4, "uploading": 0.4}
"""How far the first job of a schedule has come; something may happen in so many seconds from then on. So a slow machine
is struck in the same places as a quick one.
"""

WEIGHTS = (1, 1, 2, 3, 1)
"""How often something happens in each stage: most of all once there is a checkpoint to go on from."""


@dataclass(frozen=True)
class Action:
    """One thing that is done to the system."""

    at_s: float  # from its stage on
    kind: str  # one of REQUESTS or FAULTS
    number: int  # which: of the submission, or of the worker, counted among those at work
    seconds: float = 0.0  # how long a server stays away, or a process frozen
    owner: str = ""  # whose request it is
    spec_seed: int = 0  # of a submission
    stage: str = "start"  # one of STAGES


def draw(seed: int, number: int, workers: int, lease_s: float) -> tuple[Action, ...]:
    """The actions of one schedule, in order.

    Args:
        seed, number: of the run, and of the schedule in it.
        workers: how many there are to strike.
        lease_s: processes are frozen for shorter and for longer than this.
    """
    random = Random(f"{seed}/{number}")
    submissions = [
        Action(random.uniform(0, 1), "submit", n, owner=random.choice(OWNERS), spec_seed=random.choice(SPEC_SEEDS))
        for n in range(random.choice((1, 1, 2, 2, 3)))
    ]
    repeats = [
        Action(random.uniform(0, 4), "repeat", each.number, owner=each.owner, spec_seed=each.spec_seed)
        for each in submissions
        if random.random() < 0.3
    ]
    cancels = [
        Action(random.uniform(0, STAGES[stage]), "cancel", each.number, owner=each.owner, stage=stage)
        for each in submissions
        if random.random() < 0.25
        for stage in random.choices(tuple(STAGES), WEIGHTS)
    ]
    faults = [
        Action(
            random.uniform(0, STAGES[stage]),
            kind,
            random.randrange(workers),
            seconds=random.uniform(0.3, 1.6 * lease_s),
            stage=stage,
        )
        for kind in random.choices(FAULTS, k=random.choice((1, 2, 2, 3)))
        for stage in random.choices(tuple(STAGES), WEIGHTS)
    ]
    return tuple(sorted([*submissions, *repeats, *cancels, *faults], key=lambda action: action.at_s))
