"""A server to which 64 clients come at once, some of whom leave in the middle, ends as it began."""

import pytest
from e2e.conftest import SERVERS, Served
from soak.load_server import faults_under_load

pytestmark = pytest.mark.serve


def test_64_streams_with_disconnects_leave_no_trace(served: Served) -> None:
    """No errors; nothing runs, waits or holds cache afterwards; a greedy answer has the same log-probabilities."""
    if SERVERS[served.number][0] != "tiny":
        pytest.skip("in seconds only the tiny model has answers for 64; make soak has half an hour for the demo model")

    tally, faults = faults_under_load(served.base_url, seconds=12, seed=served.number)

    print(f"{tally.outcomes.total()} requests, {tally.chunks} chunks: {dict(tally.outcomes)}")
    assert faults == []
