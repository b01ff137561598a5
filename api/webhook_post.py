"""One POST to a receiver that a stranger may have named: to an address that was looked at, and within a time."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

import httpx

from api.public_address import Address, Allowed, ForbiddenAddress, check_url, choose

DEADLINE_S = 20.0
"""For the whole of it: also a receiver that sends a byte now and then gets no longer."""

CONNECT_S = 5.0
HEAR_OUT_S = 2.0
MAX_ANSWER_BYTES = 64 << 10
ADDRESSES_TRIED = 3  # of a host that has several
RESOLVERS = 16

Resolve = Callable[[str, int], list[Address]]


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    delivered: bool
    sentence: str  # for the owner
    final: bool = False  # whether another try could not help either


class Poster:
    """Posts, any number at once.

    Args:
        allowed: where messages may go.
        resolve: addresses by host and port; blocks.
        tls: whose certificates are trusted; None: those that certifi lists.
    """

    def __init__(self, allowed: Allowed, resolve: Resolve | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._allowed = allowed
        self._resolve = resolve or addresses_of
        # No connection is kept: it would be found again by its address, though it was made for another host.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.AsyncClient(
            verify=tls or True,
            trust_env=False,  # a proxy would connect where it likes
            limits=limits,
            timeout=httpx.Timeout(DEADLINE_S, connect=CONNECT_S),
        )
        # Threads of their own: a name server that hangs holds up nothing but names.
        self._resolvers = ThreadPoolExecutor(RESOLVERS, "resolver")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._resolvers.shutdown(wait=False, cancel_futures=True)
        await self._http.aclose()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Outcome:
        """POST `body`. It raises nothing: whatever goes wrong is an outcome."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                target = check_url(url, self._allowed)
                loop = asyncio.get_running_loop()
                found = await loop.run_in_executor(self._resolvers, self._resolve, target.host, target.port)
                outcome = Outcome(False, "The receiver takes no connection.")
                for address in choose(target.host, found, self._allowed)[:ADDRESSES_TRIED]:
                    try:
                        return await self._post_to(address, url, target.host, body, headers)
                    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                        outcome = Outcome(False, f"The receiver takes no connection: {_words(error)}.")
                return outcome
        except ForbiddenAddress as error:
            return Outcome(False, f"The URL {error}")
        except TimeoutError:
            return Outcome(False, f"The receiver did not answer within {DEADLINE_S:.0f} s.")
        except httpx.HTTPError as error:
            return Outcome(False, f"The receiver broke off: {_words(error)}.")

    async def _post_to(self, address: Address, url: str, host: str, body: bytes, headers: Mapping[str, str]) -> Outcome:
        """POST to this address and no other; `Host` and the name in TLS stay those of the URL."""
        named = httpx.URL(url)
        there = named.copy_with(host=str(address))
        async with self._http.stream(
            "POST",
            there,
            content=body,
            headers={**headers, "Host": named.netloc.decode()},
            extensions={"sni_hostname": host},
            follow_redirects=False,
        ) as response:
            await _hear_out(response)
            return _judge(response.status_code)


def addresses_of(host: str, port: int) -> list[Address]:
    """What a name stands for now; nothing if nobody knows."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [ip_address(sockaddr[0]) for *_, sockaddr in found]


async def _hear_out(response: httpx.Response) -> None:
    """Take in the start of an answer, as it comes over the line, and throw it away: only its status counts."""
    taken_bytes = 0
    with suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(HEAR_OUT_S):
            async for chunk in response.aiter_raw():
                taken_bytes += len(chunk)
                if taken_bytes > MAX_ANSWER_BYTES:
                    return


def _judge(status: int) -> Outcome:
    if 200 <= status < 300:
        return Outcome(True, f"The receiver took it ({status}).")
    if status == 410:
        return Outcome(False, "The receiver is gone for good (410).", final=True)
    if 300 <= status < 400:
        return Outcome(False, f"The receiver answered {status}: redirects are not followed, name the place itself.")
    return Outcome(False, f"The receiver answered {status}.")


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
