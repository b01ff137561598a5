"""What can go wrong between the client and the API.

ApiError                the API refused: `code` is stable, `problems` lists every field at fault
├── Unavailable         no answer, or one that says to try again later
└── TransferFailed      a file could not be moved, or did not arrive as it was
"""

import httpx

from api.schemas import ProblemDetails
from jobs.errors import Problem


class ApiError(Exception):
    """The API refused. `str()` of it is for people, `code` for programs."""

    def __init__(
        self, code: str, detail: str, status: int | None = None, problems: list[Problem] | None = None
    ) -> None:
        self.code = code
        self.detail = detail
        self.status = status  # None: it did not come as an answer of the API
        self.problems = problems or []
        super().__init__(detail)


class Unavailable(ApiError):
    """No answer, or one that says to try again later."""


class TransferFailed(ApiError):
    """A file could not be moved, or did not arrive as it was."""


def raise_for_problem(response: httpx.Response) -> None:
    """Raise what an answer other than 2xx says. Its body must have been read."""
    if response.is_success:
        return
    kind = Unavailable if response.is_server_error else ApiError
    if not response.headers.get("content-type", "").startswith("application/problem+json"):
        detail = f"{response.url} answered {response.status_code} {response.reason_phrase}. Is it a loraq API?"
        raise kind("http_error", detail, response.status_code)
    content = ProblemDetails.model_validate_json(response.content)
    problems = [Problem(each.field, each.message) for each in content.problems or ()]
    raise kind(content.code, content.detail, content.status, problems)


def no_answer(url: str, error: httpx.TransportError) -> Unavailable:
    """The error for a server that could not be reached."""
    return Unavailable(
        "no_answer",
        f"No answer from {url} ({error}). Is it running, and is LORAQ_API_URL right? `loraq up` starts one.",
    )
