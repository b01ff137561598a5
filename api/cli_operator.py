"""What commands for operators have in common: they work on Redis itself, so that they need no token."""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import getpass
import os
from collections.abc import Generator
from contextlib import contextmanager

import typer
from redis import Redis
from redis.exceptions import RedisError

from api.cli_output import ExitCode, Output
from jobs.audit import Actor
from jobs.settings import Settings

ANSWER_S = 15.0


@contextmanager
def redis_itself(output: Output) -> Generator["Redis"]:
    """Redis at LORAQ_REDIS_URL; where it does not answer, that is said and the command ends."""
    try:
        with Redis.from_url(Settings().redis_url.get_secret_value(), socket_timeout=ANSWER_S) as redis:
            yield redis
    except RedisError as error:
        output.error("redis_unavailable", f"Redis does not answer at LORAQ_REDIS_URL: {error}")
        raise typer.Exit(ExitCode.UNAVAILABLE) from None


def operator() -> Actor:
    """Whoever runs this command, for the audit log."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number that nobody named
        user = str(os.getuid())
    return Actor("operator", user)
