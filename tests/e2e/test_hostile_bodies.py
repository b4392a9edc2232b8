"""Hostile requests meet a 4xx at a server as we advise it, at once, and the next client never notices."""

import time
from collections.abc import Iterator

import httpx
import pytest
from e2e.bodies import anonymous_client, completion, status_of
from e2e.conftest import SERVERS, Served
from e2e.hostile_bodies import HOSTILE

pytestmark = pytest.mark.serve
SLOW_S = 10


@pytest.fixture
def stranger(served: Served) -> Iterator[httpx.Client]:
    with anonymous_client(served.base_url) as client:
        yield client


def test_every_hostile_body_is_refused_and_the_next_request_answered(served: Served, stranger: httpx.Client) -> None:
    """Each server gets its share of them; `make soak` sends all to one."""
    names = list(HOSTILE)[served.number :: len(SERVERS)]
    statuses, slow = {}, []

    for name in names:
        begin = time.monotonic()
        statuses[name] = status_of(stranger, *HOSTILE[name])
        if time.monotonic() - begin > SLOW_S:
            slow.append(name)

    assert {name: status for name, status in statuses.items() if not 400 <= status < 500} == {}
    assert not slow
    assert status_of(stranger, *completion()) == 200


def test_other_endpoints_take_no_body(stranger: httpx.Client) -> None:
    """Else what the gate keeps out would come in by another door."""
    _, body = completion()

    for path in ("/invocations", "/v1/responses", "/tokenize", "/scale_elastic_ep", "/v1/completions/"):
        assert status_of(stranger, path, body) == 404, path
    assert stranger.delete("/v1/models").status_code == 404
    assert stranger.get("/v1/models").status_code == 200
