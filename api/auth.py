"""Tokens: 256 random bits that name an owner. Redis holds only their SHA-256, so that a copy of it opens nothing.

A plain hash is enough, because nobody can guess 256 random bits; salt and slow hashing are for passwords. The first
twelve digits of the hash are the token's fingerprint, by which operators and the audit log call it.

Keys:
    loraq:token:{sha256}   who holds the token, JSON
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import hashlib
import re
import secrets
from collections.abc import Iterator
from datetime import datetime
from typing import cast

from pydantic import BaseModel, ConfigDict
from redis import Redis

from jobs.errors import LoraqError
from jobs.record import now

TOKEN_PREFIX = "lrq_"
"""Makes a token that leaked into a log or a repository easy to find."""

OWNER_PATTERN = r"^[a-z0-9-]{1,40}$"

FINGERPRINT_DIGITS = 12
SHORTEST_FINGERPRINT = 6

_KEYS = "loraq:token:"


class NoSuchToken(LoraqError):
    """No token, or more than one, has this fingerprint."""

    code = "token_not_found"


class Token(BaseModel):
    """What is known of a token, which is everything but the token."""

    model_config = ConfigDict(frozen=True)

    owner: str
    name: str  # what it is for, in the operator's words
    created_at: datetime


class KnownToken(Token):
    """The same, with what operators call it by."""

    fingerprint: str


def create_token(redis: "Redis", owner: str, name: str = "") -> str:
    """A new token of `owner`: this is the only time that it can be seen.

    Raises:
        ValueError: the owner's name has other characters than a-z, 0-9 and -, or more than 40.
    """
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    remember_token(redis, token, owner, name)
    return token


def remember_token(redis: "Redis", token: str, owner: str, name: str = "") -> None:
    """Let `token` stand for `owner` from now on.

    Raises:
        ValueError: the owner's name has other characters than a-z, 0-9 and -, or more than 40.
    """
    if not re.fullmatch(OWNER_PATTERN, owner):
        raise ValueError(f"{owner!r} cannot be an owner: use a-z, 0-9 and -, at most 40 characters.")
    redis.set(_key(token), Token(owner=owner, name=name, created_at=now()).model_dump_json())


def find_token(redis: "Redis", token: str) -> Token | None:
    """Whose token this is; None if nobody's."""
    raw = cast(bytes | None, redis.get(_key(token)))
    return Token.model_validate_json(raw) if raw else None


def list_tokens(redis: "Redis") -> list[KnownToken]:
    """Every token, by owner and age."""
    return sorted(_all(redis).values(), key=lambda token: (token.owner, token.created_at))


def find_fingerprint(redis: "Redis", fingerprint: str) -> tuple[str, KnownToken]:
    """Redis key of the one token whose fingerprint begins so, and what is known of it.

    Raises:
        NoSuchToken: none begins so, or several do, or it is shorter than six digits.
    """
    if not re.fullmatch(f"[0-9a-f]{{{SHORTEST_FINGERPRINT},{FINGERPRINT_DIGITS}}}", fingerprint):
        raise NoSuchToken(f"{fingerprint!r} is no fingerprint: six to twelve digits, as `loraq token list` shows them.")
    found = [each for each in _all(redis).items() if each[1].fingerprint.startswith(fingerprint)]
    if len(found) != 1:
        count = f"{len(found)} tokens begin" if found else "No token begins"
        raise NoSuchToken(f"{count} with {fingerprint}: `loraq token list` shows all.")
    return found[0]


def fingerprint_of(token: str) -> str:
    """What the audit log calls a token."""
    return _short(_key(token))


def _key(token: str) -> str:
    return f"{_KEYS}{hashlib.sha256(token.encode()).hexdigest()}"


def _all(redis: "Redis") -> dict[str, KnownToken]:
    """By Redis key."""
    keys = [key.decode() for key in cast(Iterator[bytes], redis.scan_iter(f"{_KEYS}*", count=1000))]
    raws = cast(list[bytes | None], redis.mget(keys)) if keys else []
    return {
        key: KnownToken(**Token.model_validate_json(raw).model_dump(), fingerprint=_short(key))
        for key, raw in zip(keys, raws, strict=True)
        if raw is not None
    }


def _short(key: str) -> str:
    return key.removeprefix(_KEYS)[:FINGERPRINT_DIGITS]
