"""Those who submit and cancel: each asks until the system has answered, and keeps the answer."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

from api.client_errors import ApiError
from jobs.record import now
from tests.chaos.oracle import Acknowledged, Cancel
from tests.chaos.schedule import Action
from tests.chaos.system import System

ASKS_AGAIN_AFTER_S = 0.2
MOST_REQUESTS = 9
"""Of a schedule: three submissions, each repeated and cancelled."""


class People:
    """The requests of one schedule; a context manager that waits for nobody once it is left.

    Args:
        keys: what the idempotency keys of this schedule begin with.
        told: takes in the answers.
    """

    def __init__(self, system: System, keys: str, told: Acknowledged) -> None:
        self._system = system
        self._keys = keys
        self._told = told
        self._ids: dict[int, Future[str]] = {}  # number of the submission: the job's id
        self._giving_up = threading.Event()
        self._pool = ThreadPoolExecutor(MOST_REQUESTS, thread_name_prefix="people")
        self._asked: list[Future[None]] = []

    def __enter__(self) -> "People":
        return self

    def __exit__(self, *_: object) -> None:
        self._giving_up.set()
        self._pool.shutdown(cancel_futures=True)

    def ask(self, action: Action) -> None:
        """Begin a request."""
        self._ids.setdefault(action.number, Future())
        self._asked.append(self._pool.submit(self._ask_until_answered, action))

    @property
    def answered(self) -> bool:
        """Whether every request was. Raises what no request may meet."""
        return all(asked.done() and asked.result() is None for asked in self._asked)

    def _ask_until_answered(self, action: Action) -> None:
        while not self._giving_up.is_set():
            try:
                if action.kind == "cancel":
                    self._cancel(action)
                else:
                    self._submit(action)
                return
            except (ApiError, TimeoutError):
                time.sleep(ASKS_AGAIN_AFTER_S)

    def _submit(self, action: Action) -> None:
        spec = self._system.spec(action.spec_seed)
        job = self._system.clients[action.owner].submit(spec, f"{self._keys}-{action.number}")
        self._told.submitted[job.id] = action.spec_seed
        promised = self._ids[action.number]
        if not promised.done():
            promised.set_result(job.id)
        elif promised.result() != job.id:
            self._told.broken.append(f"one key gave {promised.result()} and then {job.id}")

    def _cancel(self, action: Action) -> None:
        job_id = self._ids[action.number].result(timeout=ASKS_AGAIN_AFTER_S)
        status = self._system.clients[action.owner].cancel(job_id).status
        self._told.cancelled.setdefault(job_id, Cancel(status, now()))
