"""Both ports against what their OpenAPI documents allow and forbid: no answer >= 500, no hang, and
no answer that its document does not know."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

SECONDS = 30.0  # of one call
EXAMPLES = 25  # of one operation and mode
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]


@pytest.fixture
def place(runtime_server: Any, busybox_image: str) -> Iterator[dict[str, Any]]:
    """A sandbox, as /start describes it."""
    with httpx.Client(
        base_url=runtime_server.url,
        headers={"X-API-Key": runtime_server.key},
        timeout=SECONDS,
        trust_env=False,
    ) as control:
        body = {"image": busybox_image, "session_id": uuid.uuid4().hex, "working_dir": "/tmp"}
        started: dict[str, Any] = control.post("/start", json=body).json()
        yield started
        control.post("/stop", json={"runtime_id": started["runtime_id"]})


def _attack(
    url: str, key: dict[str, str], mode: GenerationMode, aim: Callable[[Case], None]
) -> None:
    """Call every operation of the port at `url`; `aim` may change a case before it is sent."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 10
    with requests.Session() as session:
        session.trust_env = False
        session.headers.update(key)
        for operation in operations:
            if mode is GenerationMode.NEGATIVE and not _takes_anything(operation):
                continue

            @settings(
                max_examples=EXAMPLES,
                phases=[Phase.explicit, Phase.generate],
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def attack(case: Case) -> None:
                aim(case)
                answer = case.call(base_url=url, session=session, headers=key, timeout=SECONDS)
                case.validate_response(answer, checks=CHECKS)

            attack()


def _takes_anything(operation: APIOperation[Any, Any, Any]) -> bool:
    return bool(operation.body) or any(
        parameter.location.name != "HEADER" for parameter in operation.iter_parameters()
    )


@pytest.mark.parametrize("mode", MODES)
def test_control_port(runtime_server: Any, place: dict[str, Any], mode: GenerationMode) -> None:
    turn = 0

    def aim(case: Case) -> None:
        """Every other call that names a sandbox names one that there is."""
        nonlocal turn
        turn += 1
        if turn % 2 and case.path != "/stop" and mode is GenerationMode.POSITIVE:
            if isinstance(case.body, dict) and "runtime_id" in case.body:
                case.body["runtime_id"] = place["runtime_id"]
            for name in ("runtime_id", "session_id"):
                if name in case.path_parameters:
                    case.path_parameters[name] = place[name]

    _attack(runtime_server.url, {"X-API-Key": runtime_server.key}, mode, aim)
    health = httpx.get(f"{runtime_server.url}/health", trust_env=False).json()
    assert health["status"] == "ok"


@pytest.mark.parametrize("mode", MODES)
def test_sandbox_port(place: dict[str, Any], mode: GenerationMode) -> None:
    key = {"X-Session-API-Key": place["session_api_key"]}
    _attack(place["url"], key, mode, lambda case: None)
    done = httpx.post(
        f"{place['url']}/skiff/run", json={"command": "exit 3"}, headers=key, trust_env=False
    )
    assert done.json()["exit_code"] == 3
