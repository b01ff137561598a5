"""An outage of Redis in the log: one line when it begins and one when it ends, however often it is met."""

import logging


class Outage:
    """Whether Redis is gone, as one loop has found it.

    Args:
        log: of whoever met it.
        meanwhile: what goes on without Redis, as the end of a sentence; "" for nothing.
    """

    def __init__(self, log: logging.Logger, meanwhile: str = "") -> None:
        self._log = log
        self._meanwhile = meanwhile
        self._lasts = False

    def met(self, error: Exception) -> None:
        """Redis did not answer."""
        if not self._lasts:
            self._log.warning("Redis is gone%s: %s", self._meanwhile, error)
        self._lasts = True

    def over(self) -> None:
        """Redis answered."""
        if self._lasts:
            self._log.warning("Redis is back")
        self._lasts = False
