"""What a training has to do with whoever started it: it reports facts, and hears when it is to stop."""

from collections.abc import Callable

Emit = Callable[..., None]
"""emit("step", step=1, ...) reports one fact of the contract in worker.trainer."""


class Stopped(Exception):
    """The training was told to stop before this process had trained a step."""
