"""What one look has found."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["ok", "skipped", "warning", "failed"]


class Finding(BaseModel):
    """One line of the report."""

    model_config = ConfigDict(frozen=True)

    subject: str = Field(description="What was looked at: redis, bucket outputs, gpu, …")
    check: str = Field(description="Which side of it: durable, multipart, …")
    state: State
    message: str = Field(default="", description="What was found, and where it is not well what to do.")


class Findings:
    """What is found of one subject, in order."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.all: list[Finding] = []

    def ok(self, check: str, message: str = "") -> None:
        """It is as it must be."""
        self._add(check, "ok", message)

    def skipped(self, check: str, message: str) -> None:
        """It cannot be looked at here, or need not be."""
        self._add(check, "skipped", message)

    def warning(self, check: str, message: str) -> None:
        """It works, and will not always."""
        self._add(check, "warning", message)

    def failed(self, check: str, message: str) -> None:
        """It does not work."""
        self._add(check, "failed", message)

    @contextmanager
    def looking(self, check: str, explain: Callable[[Exception], str] = str) -> Generator[None]:
        """Look: ok if nothing is raised inside, else failed, with what `explain` makes of the error."""
        try:
            yield
        except Exception as error:  # whatever it is, the report goes on
            self.failed(check, explain(error) or type(error).__name__)
        else:
            self.ok(check)

    def _add(self, check: str, state: State, message: str) -> None:
        self.all.append(Finding(subject=self.subject, check=check, state=state, message=message))
