"""Hostile requests meet a 4xx at a server as we advise it, none is left waiting, and the next client never notices."""

from collections.abc import Iterator

import httpx
import pytest
from e2e.bodies import LIMIT_S, anonymous_client, completion, status_of
from e2e.conftest import SERVERS, Served
from e2e.hostile_bodies import HOSTILE

pytestmark = pytest.mark.serve


@pytest.fixture
def stranger(served: Served) -> Iterator[httpx.Client]:
    with anonymous_client(served.base_url) as client:
        yield client


def answer(client: httpx.Client, name: str) -> int:
    """The status of a hostile body; a server that never answers it fails the test by the body's name."""
    try:
        return status_of(client, *HOSTILE[name])
    except httpx.TimeoutException:
        pytest.fail(f"{name}: no answer in {LIMIT_S} s")


def test_every_hostile_body_is_refused_and_the_next_request_answered(served: Served, stranger: httpx.Client) -> None:
    """Each server gets its share of them; `make soak` sends all to one."""
    names = list(HOSTILE)[served.number :: len(SERVERS)]

    statuses = {name: answer(stranger, name) for name in names}

    assert {name: status for name, status in statuses.items() if not 400 <= status < 500} == {}
    assert status_of(stranger, *completion()) == 200


def test_other_endpoints_take_no_body(stranger: httpx.Client) -> None:
    """Else what the gate keeps out would come in by another door."""
    _, body = completion()

    for path in ("/invocations", "/v1/responses", "/tokenize", "/scale_elastic_ep", "/v1/completions/"):
        assert status_of(stranger, path, body) == 404, path
    assert stranger.delete("/v1/models").status_code == 404
    assert stranger.get("/v1/models").status_code == 200
