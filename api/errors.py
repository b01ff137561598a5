"""Every error as `application/problem+json` (RFC 9457), with a stable code and nothing of our insides.

LoraqError                      jobs/errors.py has the others
├── Unauthorized                401: no token, or one that nobody has
├── NoArtifactsYet              409: nothing is committed
├── BodyTooLarge                413: more bytes than the route takes
└── UnsupportedMediaType        415: neither JSON nor YAML
"""

import json
import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from jobs.errors import (
    IdempotencyConflict,
    IllegalTransition,
    InvalidSpec,
    JobNotFound,
    LoraqError,
    NotRetryable,
    Problem,
    StorageError,
    TooManyJobs,
)

log = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_S = 5


class Unauthorized(LoraqError):
    """Send `Authorization: Bearer lrq_...` with a token that `loraq token create` gave out."""

    code = "unauthorized"


class NoArtifactsYet(LoraqError):
    """The job has committed no files."""

    code = "no_artifacts_yet"


class BodyTooLarge(LoraqError):
    """The body has more bytes than the route takes."""

    code = "body_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The body is larger than {limit_bytes} bytes, the limit here.")


class UnsupportedMediaType(LoraqError):
    """The body is of a kind that the route does not read."""

    code = "unsupported_media_type"


class InvalidRequest(LoraqError):
    """The request is not what the route takes; `problems` lists every field at fault."""

    code = "invalid_request"

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("The request is not what this route takes: see problems.")

    @classmethod
    def of(cls, error: ValidationError | RequestValidationError) -> "InvalidRequest":
        """What pydantic found, in our words."""
        errors = error.errors()
        # A list whose every item is at fault is reported as empty, too: that adds nothing.
        inner = {each["loc"][:length] for each in errors for length in range(1, len(each["loc"]))}
        told = [each for each in errors if each["loc"] not in inner]
        return cls([Problem(_dotted(each["loc"]), f"{each['msg'].removeprefix('Value error, ')}.") for each in told])


_STATUS: dict[type[LoraqError], HTTPStatus] = {
    Unauthorized: HTTPStatus.UNAUTHORIZED,
    JobNotFound: HTTPStatus.NOT_FOUND,
    IdempotencyConflict: HTTPStatus.CONFLICT,
    IllegalTransition: HTTPStatus.CONFLICT,
    NoArtifactsYet: HTTPStatus.CONFLICT,
    NotRetryable: HTTPStatus.CONFLICT,
    TooManyJobs: HTTPStatus.TOO_MANY_REQUESTS,
    BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UnsupportedMediaType: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    InvalidSpec: HTTPStatus.UNPROCESSABLE_ENTITY,
    InvalidRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    StorageError: HTTPStatus.SERVICE_UNAVAILABLE,
}

_CODES = {404: "not_found", 405: "method_not_allowed"}


def problem(request: Request, status: int, code: str, detail: str, problems: list[Problem] | None = None) -> Response:
    """The response for an error."""
    content: dict[str, Any] = {
        "type": f"urn:loraq:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "instance": request.url.path,
    }
    if problems is not None:
        content["problems"] = [{"field": each.field, "message": each.message} for each in problems]
    headers: dict[str, str] = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="loraq"'
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        headers["Connection"] = "close"  # else the server would take in the rest, only to throw it away
    # ASCII, because what a user sent may hold half a surrogate pair, which no encoding takes.
    return Response(json.dumps(content), status, headers, PROBLEM_JSON)


def add_error_handlers(app: FastAPI) -> None:
    """Let every error leave `app` as problem+json."""
    app.add_exception_handler(LoraqError, _loraq_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RedisConnectionError, _redis_unavailable)
    app.add_exception_handler(RedisTimeoutError, _redis_unavailable)


def _loraq_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LoraqError)
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), None)
    if status is None:
        raise error  # a kind that no route should let out: our own bug
    detail = str(error) or (type(error).__doc__ or "")
    problems = error.problems if isinstance(error, InvalidSpec | InvalidRequest) else None
    if isinstance(error, InvalidSpec):
        detail = f"The spec cannot be carried out: {_count(error.problems)}."
    return problem(request, status, error.code, detail, problems)


def _invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _loraq_error(request, InvalidRequest.of(error))


def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "http_error")
    detail = {
        404: f"There is nothing at {request.url.path}. /openapi.json lists what there is.",
        405: f"{request.url.path} does not take {request.method}.",
    }.get(error.status_code, str(error.detail))
    response = problem(request, error.status_code, code, detail)
    response.headers.update(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        response.headers["Allow"] = ", ".join(_methods(request))
    return response


def _methods(request: Request) -> list[str]:
    """What the path takes. Starlette itself names only the first method of a path."""
    paths: dict[str, dict[str, Any]] = request.app.openapi()["paths"]
    matching = [methods for path, methods in paths.items() if compile_path(path)[0].match(request.url.path)]
    return sorted({method.upper() for methods in matching for method in methods})


def _redis_unavailable(request: Request, error: Exception) -> Response:
    log.error("Redis does not answer: %s", error)
    detail = f"The job store does not answer. Nothing was changed; try again in {RETRY_AFTER_S} s."
    return problem(request, HTTPStatus.SERVICE_UNAVAILABLE, "redis_unavailable", detail)


def _dotted(location: tuple[int | str, ...]) -> str:
    """Where the fault is, as a person writes it: without FastAPI's word for the part of the request."""
    parts = location[1:] if location and location[0] in ("body", "query", "path", "header") else location
    return ".".join(str(part) for part in parts)


def _count(problems: list[Problem]) -> str:
    return "one field is at fault" if len(problems) == 1 else f"{len(problems)} fields are at fault"
