"""What happens in one schedule, and when: drawn from a seed, so that the same seed gives the same schedule again."""

from dataclasses import dataclass
from random import Random

from jobs.status import Status

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


STAGES = (None, Status.PREPARING, Status.TRAINING, Status.TRAINING, Status.UPLOADING)


@dataclass(frozen=True)
class Action:
    """One thing that is done to the system."""

    at_s: float  # after the schedule's start, or after its first job came as far as `stage`
    kind: str  # one of REQUESTS or FAULTS
    number: int  # which: of the submission, or of the worker, counted among those at work
    seconds: float = 0.0  # how long a server stays away, or a process frozen
    owner: str = ""  # whose request it is
    spec_seed: int = 0  # of a submission
    stage: Status | None = None  # so that a slow machine is struck in the same place


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
        Action(random.uniform(0.2, 3), "cancel", each.number, owner=each.owner, stage=random.choice(STAGES))
        for each in submissions
        if random.random() < 0.25
    ]
    faults = [
        Action(
            random.uniform(0, 2.5),
            kind,
            random.randrange(workers),
            seconds=random.uniform(0.3, 1.6 * lease_s),
            stage=random.choice(STAGES),
        )
        for kind in random.choices(FAULTS, k=random.choice((1, 2, 2, 3)))
    ]
    return tuple(sorted([*submissions, *repeats, *cancels, *faults], key=lambda action: action.at_s))
