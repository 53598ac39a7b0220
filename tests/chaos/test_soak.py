"""A fleet's two weeks in a minute: the short form of `make soak`."""

import uuid
from pathlib import Path

import pytest

from streams.kafka.settings import BrokerSettings
from tests.e2e.soak.run import soak
from tests.e2e.soak.scenario import SHORT


@pytest.mark.kafka
def test_two_weeks_with_everything_that_happens_lose_and_double_nothing(
    kafka: BrokerSettings, tmp_path: Path
) -> None:
    said: list[str] = []
    found = soak(tmp_path, kafka, SHORT, f"soak-{uuid.uuid4().hex[:6]}", None, said.append)
    assert found.open == {}
    assert found.repeated == 0
    assert found.produced > 24 * 10 * 288 / 2
    assert found.produced == found.scored + sum(found.dropped.values())
    assert found.dropped["lost-by-retention"] > 0
    assert found.dropped["spool-full"] > 0
    ends = {line for line in found.decisions if line.startswith(("served", "rolled-back"))}
    for kind, number in (("served", "2"), ("rolled-back", "3"), ("served", "4")):
        assert f"{kind} {found.versions[number]}" in ends
    assert found.served == {found.versions["4"]: SHORT.devices}
