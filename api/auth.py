"""Tokens: 256 random bits that name an owner. Redis holds only their SHA-256, so that a copy of it opens nothing.

A plain hash is enough, because nobody can guess 256 random bits; salt and slow hashing are for passwords.

Keys:
    loraq:token:{sha256}   who holds the token, JSON
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import hashlib
import re
import secrets
from datetime import datetime
from typing import cast

from pydantic import BaseModel, ConfigDict
from redis import Redis

from jobs.record import now

TOKEN_PREFIX = "lrq_"
"""Makes a token that leaked into a log or a repository easy to find."""

OWNER_PATTERN = r"^[a-z0-9-]{1,40}$"


class Token(BaseModel):
    """What is known of a token, which is everything but the token."""

    model_config = ConfigDict(frozen=True)

    owner: str
    name: str  # what it is for, in the operator's words
    created_at: datetime


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


def _key(token: str) -> str:
    return f"loraq:token:{hashlib.sha256(token.encode()).hexdigest()}"
