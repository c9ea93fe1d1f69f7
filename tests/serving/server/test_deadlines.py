"""How long an answer may take: what the client leaves, and the config's limit at most."""

import asyncio

import pytest

from contracts.config import ServerConfig
from serving.server.metrics import Metrics
from serving.server.models import Models


@pytest.mark.parametrize(
    ("seconds_left", "expected"),
    [
        (None, 5.0),
        (60.0, 5.0),
        (3.0, 2.99),  # a hundredth of a second before gRPC drops the call
        (0.05, 0.045),  # or a tenth of what there is
    ],
)
def test_a_request_is_answered_before_its_client_gives_up_and_within_the_configs_limit(
    seconds_left, expected, monkeypatch
):
    class Version:
        async def predict(self, signature, inputs, deadline):
            return deadline - 100.0

    async def granted() -> float:
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 100.0)
        models = Models({}, ServerConfig(request_timeout_seconds=5.0), Metrics([]))
        async with models:
            return await models.predict(Version(), None, {}, seconds_left)

    assert asyncio.run(granted()) == pytest.approx(expected)
