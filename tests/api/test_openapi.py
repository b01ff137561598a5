"""The API's description of itself is a contract: tests/contracts/openapi.json. Write it anew with

python -m tests.api.test_openapi > tests/contracts/openapi.json
"""

import json
from pathlib import Path
from typing import Any

import pytest

from api.app import create_app
from jobs.settings import Settings

CONTRACT = Path(__file__).parent.parent / "contracts" / "openapi.json"


def described() -> dict[str, Any]:
    """The description as the API serves it."""
    return create_app(Settings(s3_region="us-east-1", s3_endpoint_url="http://127.0.0.1:9")).openapi()


def text_of(description: dict[str, Any]) -> str:
    """The form in which it is committed."""
    return json.dumps(description, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    return described()


def test_the_contract_is_kept(openapi: dict[str, Any]) -> None:
    assert text_of(openapi) == CONTRACT.read_text(encoding="utf-8"), __doc__


def test_every_reference_leads_somewhere(openapi: dict[str, Any]) -> None:
    names = {part.partition('"')[0] for part in json.dumps(openapi).split('"#/components/schemas/')[1:]}
    assert names <= set(openapi["components"]["schemas"])
    assert "$defs" not in json.dumps(openapi)


def test_every_v1_operation_tells_of_its_token_its_errors_and_its_purpose(openapi: dict[str, Any]) -> None:
    operations = [(path, operation) for path, methods in openapi["paths"].items() for operation in methods.values()]
    assert len({operation["operationId"] for _, operation in operations}) == len(operations)
    for path, operation in operations:
        assert operation["description"]
        if path.startswith("/v1"):
            assert operation["security"] == [{"token": []}]
            assert {"401", "503"} <= set(operation["responses"])
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"], (path, status)


def test_a_spec_in_the_description_leaves_open_what_has_a_default(openapi: dict[str, Any]) -> None:
    assert openapi["components"]["schemas"]["JobSpec"]["required"] == [
        "version",
        "name",
        "base_model",
        "dataset",
        "output",
    ]


if __name__ == "__main__":
    print(text_of(described()), end="")
