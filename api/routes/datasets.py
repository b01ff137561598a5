"""/v1/datasets: where to upload a dataset, without the object store's credentials."""

import secrets
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError

from api.bodies import read_body
from api.deps import ActorDep, ServicesDep
from api.errors import InvalidRequest
from api.openapi import DATASET_BODY, problems
from api.schemas import DatasetUpload, NewDataset, Upload
from jobs import audit
from jobs.record import now
from jobs.uri import S3Uri

router = APIRouter(tags=["datasets"])

EXPIRES_S = 6 * 3600
"""Long enough for two thousand pictures over a slow line."""

MAX_BODY_BYTES = 8 << 20  # 10,000 files with names of 500 characters, and room for JSON around them


async def dataset_body(request: Request) -> bytes:
    """The body, as it came."""
    return await read_body(request, MAX_BODY_BYTES)


@router.post("/datasets", status_code=201, responses=problems(401, 413, 422, 503), openapi_extra=DATASET_BODY)
def new_dataset(actor: ActorDep, services: ServicesDep, body: Annotated[bytes, Depends(dataset_body)]) -> DatasetUpload:
    """Name the files of a dataset, or one archive, and get a URL for each: PUT them there, then submit a spec with this
    `uri`.

    A dataset never changes and is never mixed with another: each call makes a folder of its own.
    """
    try:
        dataset = NewDataset.model_validate_json(body)
    except ValidationError as error:
        raise InvalidRequest.of(error) from None
    name = f"{actor.owner}/{dataset.name}-{secrets.token_hex(5)}/"
    folder = S3Uri(services.settings.datasets_bucket, name)
    size_bytes = sum(file.size_bytes for file in dataset.files)
    audit.write(
        services.store.redis, actor, audit.Action.DATASET, str(folder), files=len(dataset.files), size_bytes=size_bytes
    )
    return DatasetUpload(
        uri=str(folder / dataset.files[0].path if dataset.is_archive else folder),
        expires_at=now() + timedelta(seconds=EXPIRES_S),
        files=tuple(
            Upload(path=file.path, url=services.storage.presign_put(folder / file.path, file.size_bytes, EXPIRES_S))
            for file in dataset.files
        ),
    )
