"""What every route needs: the services of the app, and who asks."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from redis.asyncio import Redis as AsyncRedis

from api.auth import find_token, fingerprint_of
from api.errors import Unauthorized
from api.public_address import Allowed
from api.readiness import Readiness
from jobs.archive import Archive
from jobs.audit import Actor
from jobs.errors import JobNotFound
from jobs.record import JobRecord
from jobs.settings import Settings
from jobs.storage import Storage
from jobs.store import Store


@dataclass(frozen=True)
class Services:
    """All that the routes work with."""

    settings: Settings
    store: Store
    storage: Storage
    followers: "AsyncRedis"  # one connection for each person who follows a job; it costs no thread
    readiness: Readiness
    webhooks_to: Allowed  # where a webhook may go
    archive: Archive

    def find(self, job_id: str, owner: str) -> JobRecord:
        """An owner's job, from Redis or from the archive.

        Raises:
            JobNotFound.
            StorageError: it is archived, and the object store does not answer.
        """
        try:
            return self.store.get(job_id, owner)
        except JobNotFound:
            return self.archive.get(job_id, owner)


def services(request: Request) -> Services:
    """The app's services."""
    return request.app.state.services


_bearer = HTTPBearer(
    scheme_name="token", auto_error=False, description="A token from `loraq token create`: it begins with lrq_."
)


def actor(
    services: Annotated[Services, Depends(services)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Actor:
    """Whose token came with the request, and which.

    Raises:
        Unauthorized: none came, or nobody's.
    """
    if credentials is None:
        raise Unauthorized(
            "Send a token: `Authorization: Bearer lrq_...`. Your operator makes one by `loraq token create`."
        )
    token = find_token(services.store.redis, credentials.credentials)
    if token is None:
        raise Unauthorized("Nobody holds this token. Look whether it is whole, or ask your operator for a new one.")
    return Actor(token.owner, fingerprint_of(credentials.credentials))


def owner(actor: Annotated[Actor, Depends(actor)]) -> str:
    """Whose token came with the request."""
    return actor.owner


ServicesDep = Annotated[Services, Depends(services)]
ActorDep = Annotated[Actor, Depends(actor)]
OwnerDep = Annotated[str, Depends(owner)]
