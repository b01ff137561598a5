"""What the routes say of themselves in /openapi.json, where FastAPI cannot know it: errors, and bodies read by hand."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from api.bodies import JSON_TYPES, YAML_TYPES
from api.errors import PROBLEM_JSON
from api.schemas import NewDataset, ProblemDetails
from jobs.spec import JobSpec

_WHEN = {
    401: "No token came, or one that nobody holds.",
    404: "There is no such job, or it is another owner's.",
    409: "The state of things does not allow it; `code` says why.",
    413: "The body is larger than the route takes.",
    415: "The body is neither JSON nor YAML.",
    422: "What was sent is at fault: `problems` lists every field.",
    429: "As many jobs of yours wait as may.",
    503: "Redis or the object store does not answer: try again.",
}


def _schema(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these errors."""
    return {
        status: {"description": _WHEN[status], "content": {PROBLEM_JSON: {"schema": _schema(ProblemDetails)}}}
        for status in statuses
    }


SPEC_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A spec, version 1. The limit is 64 KiB.",
        "content": {media_type: {"schema": _schema(JobSpec)} for media_type in JSON_TYPES + YAML_TYPES},
    }
}

DATASET_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": _schema(NewDataset)}}}
}

EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The events: as a stream, or as a list if you accept only application/json.",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'id: 1764000000000-0\r\nevent: status\r\ndata: {"id": "1764000000000-0", ...}\r\n\r\n',
            },
        },
    },
    204: {"description": "The job has ended and nothing came after Last-Event-ID: do not connect again."},
}


def describe(app: FastAPI) -> None:
    """Let `app` describe itself with the models that only these hand-written parts name."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
                separate_input_output_schemas=False,
            )
            components = schema.setdefault("components", {}).setdefault("schemas", {})
            for model in (ProblemDetails, NewDataset, JobSpec):
                described = model.model_json_schema(ref_template="#/components/schemas/{model}")
                components.update(described.pop("$defs", {}))
                components[model.__name__] = described
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi
