"""Answers that boto3 reads whole (a listing, the answer to a PUT): one that trickles or breaks off is dropped, and
asked for again. By itself boto3 waits for each byte anew, so that a listing at one byte a second holds a job for hours.

Objects are read by jobs/object_stream.py.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# botocore has no types.

import time
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import ConnectionClosedError, ReadTimeoutError
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError

CHUNK_BYTES = 1 << 16

LEAST_BYTES_PER_S = 1024
"""An answer that is slower than this, over the whole of `stall_s`, is dropped and asked for again."""


def drop_slow_answers(client: Any, stall_s: float) -> None:
    """Let `client`, of boto3, read answers as this module says."""
    endpoint = client._endpoint  # what botocore.endpoint calls is its `http_session.send`, once for each try
    endpoint.http_session = _Session(endpoint.http_session, stall_s)


class _Session:
    """botocore's HTTP session, but for how answers are read."""

    def __init__(self, session: Any, stall_s: float) -> None:
        self._session = session
        self._stall_s = stall_s

    def send(self, request: Any) -> Any:
        """The answer; read to its end, unless whoever asked will do that."""
        if request.stream_output:
            return self._session.send(request)
        request.stream_output = True  # so that it is left to us
        answer = self._session.send(request)
        data = b"".join(self._read(answer.raw, request.url))
        promised = answer.headers.get("Content-Length")
        if request.method != "HEAD" and promised is not None and int(promised) > len(data):
            error = f"the answer broke off at byte {len(data)} of {promised}"
            raise ConnectionClosedError(error=error, request=request, endpoint_url=request.url)
        answer.raw = _Read(data)
        return answer

    def close(self) -> None:
        """Close all connections."""
        self._session.close()

    def _read(self, raw: HTTPResponse, url: str) -> Iterator[bytes]:
        since_s, came_bytes = time.monotonic(), 0
        try:
            while chunk := raw.read1(CHUNK_BYTES):
                yield chunk
                came_bytes += len(chunk)
                if (seconds := time.monotonic() - since_s) >= self._stall_s:
                    if came_bytes < seconds * LEAST_BYTES_PER_S:
                        error = f"it brought {came_bytes} bytes in {seconds:.0f} s"
                        raise ReadTimeoutError(endpoint_url=url, error=error)
                    since_s, came_bytes = time.monotonic(), 0
        except HTTPError as error:
            raise ReadTimeoutError(endpoint_url=url, error=error) from error
        finally:
            raw.close()  # a connection whose answer was read to its end has gone back to the pool before


class _Read:
    """A body that has been read."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def stream(self) -> Iterator[bytes]:
        """As urllib3's."""
        yield self._data
