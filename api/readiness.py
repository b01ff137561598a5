"""Whether what the API leans on answers, found out without ever waiting long for it."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

TIMEOUT_S = 3.0


class Readiness:
    """Named checks that run side by side.

    A check that hangs is not started again before it ends, so that a health probe every few seconds piles up nothing.

    Args:
        checks: by name, each raises if its subject is not well.
    """

    def __init__(self, checks: Mapping[str, Callable[[], object]]) -> None:
        self._checks = checks
        self._pool = ThreadPoolExecutor(max_workers=max(1, len(checks)), thread_name_prefix="readiness")
        self._running: dict[str, Future[object]] = {}

    def look(self, timeout_s: float = TIMEOUT_S) -> dict[str, str]:
        """By name "ok" or what is wrong, after `timeout_s` at most."""
        for name, check in self._checks.items():
            if name not in self._running or self._running[name].done():
                self._running[name] = self._pool.submit(check)
        running = dict(self._running)
        wait(running.values(), timeout_s)
        return {name: _outcome(future, timeout_s) for name, future in running.items()}

    def close(self) -> None:
        """Start no more checks."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _outcome(check: "Future[object]", timeout_s: float) -> str:
    if not check.done():
        return f"no answer within {timeout_s:.0f} s"
    error = check.exception()
    return "ok" if error is None else str(error) or type(error).__name__
