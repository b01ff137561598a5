"""A spec as everybody may read it: it goes into the header of LoRA files, and people give those away.

`spec.yaml` lies beside the output in the owner's own folder and has all of it.
"""

import json
import re
from typing import Any, cast

from jobs.spec import JobSpec

# [user:password@]host/path?query#fragment, of which what stands in the middle is no secret
_URI = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?:[^/?#]*@)?(?P<place>[^?#]*)[^\x00]*")


def published_spec(spec: JobSpec) -> str:
    """`spec` as JSON, which `read_spec` takes.

    Without the webhook: whoever knows a chat's may post to it, and one inside a network names its hosts. Addresses are
    without user, password, query (as of a presigned URL) and fragment.
    """
    data = spec.model_dump(mode="json", exclude={"webhook"})
    return json.dumps(_without_secrets(data), ensure_ascii=False)


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(each) for key, each in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_without_secrets(each) for each in cast(list[Any], value)]
    if isinstance(value, str) and (uri := _URI.fullmatch(value)):
        return uri["scheme"] + uri["place"]
    return value
