"""`python -m api.setup`: what a new installation needs once. docker-compose.yml runs it before everything else.

It makes the buckets, lets the first token in and brings base models. Each is done only where it has not been done, so
it may run at every start; whoever revokes the first token does not find it let in again.
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import logging
import sys
import time
from typing import Annotated

import typer
from redis import Redis
from tenacity import Retrying, before_sleep_log, retry_if_exception_type, stop_after_delay, wait_fixed

from api.auth import fingerprint_of, remember_token
from api.base_models import ModelNotBrought, bring
from jobs.errors import StorageError, StorageUnavailable
from jobs.logs import set_up_logging
from jobs.settings import Settings
from jobs.storage import Storage

log = logging.getLogger(__name__)

FIRST_TOKENS = "loraq:first-tokens"
"""Fingerprints of the first tokens that were let in, once and for all."""

STORE_STARTS_WITHIN_S = 120.0
TELL_EVERY_S = 10.0


def make_buckets(storage: Storage, settings: Settings) -> None:
    """Make every bucket that jobs use, once the object store answers.

    Raises:
        StorageError: it does not, or refuses.
    """
    starting = Retrying(
        retry=retry_if_exception_type(StorageUnavailable),
        stop=stop_after_delay(STORE_STARTS_WITHIN_S),
        wait=wait_fixed(1),
        before_sleep=before_sleep_log(log, logging.INFO),
        reraise=True,
    )
    for bucket in dict.fromkeys((settings.datasets_bucket, *settings.buckets)):
        starting(storage.make_bucket, bucket)


def let_in(redis: "Redis", token: str, owner: str) -> bool:
    """Let the first token in, unless it was before. Returns whether it was let in just now.

    Raises:
        ValueError: the owner's name is none.
    """
    with redis.pipeline() as pipeline:
        if redis.sismember(FIRST_TOKENS, fingerprint_of(token)):
            return False
        remember_token(pipeline, token, owner, "made by loraq init")
        pipeline.sadd(FIRST_TOKENS, fingerprint_of(token))
        pipeline.execute()
    return True


def bring_base_model(storage: Storage, source: str, bucket: str) -> None:
    """Bring a base model, and say every few seconds how far it has come.

    Raises:
        ModelNotBrought, StorageError.
    """
    came, told_s = 0, time.monotonic()

    def tell(count: int) -> None:
        nonlocal came, told_s
        came += count
        if time.monotonic() - told_s >= TELL_EVERY_S:
            told_s = time.monotonic()
            log.info("%.1f GB of the base model have come", came / 1e9)

    uri, brought = bring(source, bucket, storage, tell)
    log.info("Base model %s is %s", uri, "there now" if brought else "there")


def setup(
    api_token: Annotated[str, typer.Option(envvar="LORAQ_API_TOKEN", help="The first token.")] = "",
    owner: Annotated[str, typer.Option(envvar="LORAQ_OWNER", help="Who holds it.")] = "me",
    base_models: Annotated[
        str, typer.Option(envvar="LORAQ_BASE_MODELS", help="Sources of base models, parted by blanks.")
    ] = "",
    models_bucket: Annotated[str, typer.Option(envvar="LORAQ_MODELS_BUCKET", help="Where they go.")] = "models",
) -> None:
    """Do what a new installation needs. Every option is an environment variable: secrets do not belong in arguments."""
    set_up_logging()
    settings = Settings()
    storage = Storage(settings)
    try:
        make_buckets(storage, settings)
        log.info("The buckets are there: %s", ", ".join(settings.buckets))
        if api_token:
            with Redis.from_url(settings.redis_url.get_secret_value(), socket_timeout=15) as redis:
                let_in(redis, api_token, owner)
            log.info("The first token, of %s, has been let in", owner)
        for source in base_models.split():
            bring_base_model(storage, source, models_bucket)
    except (StorageError, ModelNotBrought, ValueError) as error:
        log.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    typer.run(setup)
