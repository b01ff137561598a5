"""One log line a request, and a request id that a user can quote when something breaks."""

import logging
import secrets
from collections.abc import Callable
from time import monotonic
from urllib.parse import quote

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import problem

log = logging.getLogger(__name__)


Observe = Callable[[Scope, int, float], None]
"""What else is told of a request: its scope, the answer's status (0 for none), and how long it took, s."""


class AccessLog:
    """ASGI middleware: logs each request and tells `observe`, names it in X-Request-ID, makes a bug a 500."""

    def __init__(self, app: ASGIApp, observe: Observe | None = None) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, begin = secrets.token_hex(8), monotonic()
        status: int = 0

        async def named_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, named_send)
        except Exception:
            log.exception("Request %s broke", request_id, extra={"request_id": request_id})
            if status:
                raise  # the answer had begun: the server can only cut it off
            detail = f"Something broke on our side. The log tells more under request {request_id}."
            await problem(Request(scope), 500, "internal_error", detail)(scope, receive, named_send)
        finally:
            ms = (monotonic() - begin) * 1000
            path = quote(scope["path"])  # a line break in it would forge a line of the log
            data = {"method": scope["method"], "path": path, "status": status, "ms": round(ms, 1)}
            sentence = "%(method)s %(path)s gave %(status)d in %(ms).1f ms"
            level = logging.DEBUG if path == "/healthz" else logging.INFO  # asked every few seconds
            job_id = scope.get("path_params", {}).get("job_id")
            ids = {"request_id": request_id} | ({"job_id": job_id} if job_id else {})
            log.log(level, sentence, data, extra=data | ids)
            if self._observe is not None:
                self._observe(scope, status, ms / 1000)
