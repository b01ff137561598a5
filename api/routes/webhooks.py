"""/v1/webhooks: what a receiver of webhooks needs to know."""

from fastapi import APIRouter, Response

from api.deps import ActorDep, ServicesDep
from api.openapi import problems
from api.schemas import WebhookSecret
from jobs import audit
from jobs.webhooks import signing_secret

router = APIRouter(tags=["webhooks"])


@router.get("/webhooks/secret", responses=problems(401, 503))
def webhook_secret(actor: ActorDep, services: ServicesDep, response: Response) -> WebhookSecret:
    """The secret with which all your webhooks are signed. Whoever has it can forge them."""
    response.headers["Cache-Control"] = "no-store"
    audit.write(services.store.redis, actor, audit.Action.WEBHOOK_SECRET, actor.owner)
    return WebhookSecret(secret=signing_secret(services.store.redis, actor.owner))
