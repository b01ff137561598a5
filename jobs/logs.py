"""Logs are sentences with data: for people on a terminal, as JSON lines everywhere else.

A process that works on one job at a time names it once, by `bind`; from then on each of its lines says which, also
those of libraries and of other threads.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

# What every LogRecord has (and uvicorn's coloured copy); anything else came in by `extra` and is data.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


_bound: dict[str, Any] = {}


def bind(**data: Any) -> None:
    """What every line of this process is about from now on, in place of what it was about before: none for nothing."""
    global _bound
    _bound = data


class _Bound(logging.Filter):
    """Adds what is bound to each line that does not say it of itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in _bound.items():
            if name not in vars(record):
                setattr(record, name, value)
        return True


class JsonLines(logging.Formatter):
    """One JSON object a line: at, level, logger, message, and whatever `extra` held."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of one record."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up_logging(level: int = logging.INFO) -> None:
    """Send all logs to standard error, in the form that suits what reads it."""
    handler = logging.StreamHandler(sys.stderr)
    human = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
    handler.addFilter(_Bound())
    handler.setFormatter(human if sys.stderr.isatty() else JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs whole URLs, and a webhook's may hold a secret
