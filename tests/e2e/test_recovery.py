"""A fleet that mends itself on real recordings, and refuses what would harm it."""

from pathlib import Path
from typing import Any

import pytest

from streams.runtime.files import cache_folder
from tests.rig.processes.fleet import Place

ROOT = Path(__file__).parents[2]


@pytest.fixture
def kept_cache(kafka_place: Place) -> Place:
    """The recordings and the trained models of an earlier run, where there are some."""
    kafka_place.cache = cache_folder()
    kafka_place.environ["PYTHONPATH"] = str(ROOT)  # other packages install an `examples`, too
    return kafka_place


@pytest.mark.kafka
@pytest.mark.timeout(1000)
def test_a_fleet_whose_phones_are_worn_otherwise_is_served_well_again(kept_cache: Place) -> None:
    place = kept_cache
    running = place.start_module("demo", "examples.drift.demo", "--json", "--state", place.state)
    assert running.ends(960) == 0, running.told
    place.nothing_is_left()
    found = running.summary()
    assert found["missing"] == []
    check_recovered(found)
    check_order([moment["what"] for moment in found["moments"]])
    check_counter_scenario(found)


def check_recovered(found: dict[str, Any]) -> None:
    """At least half of what was lost has come back, of the agreement and of the accuracy."""
    for part, whole in (("agreeing", "compared"), ("correct", "labelled")):
        before, low, now = (
            found[when][part] / found[when][whole] for when in ("before", "otherwise", "recovered")
        )
        assert low < before - 0.1
        assert now > low + 0.5 * (before - low)


def check_order(what: list[str]) -> None:
    """Nobody helped: an alarm, then the adapters; later the bad candidate."""

    def at(beginning: str) -> int:
        return next(i for i, text in enumerate(what) if text.startswith(beginning))

    assert at("the first alarm") < at("each answers behind") < at("rolled-back")


def check_counter_scenario(found: dict[str, Any]) -> None:
    assert found["others_bad"] > found["others_before"] - 0.02  # good on average
    assert found["canary_bad"] < found["canary_before"] - 0.3
    assert 1 <= found["bad_windows"] <= 2
    attacks = {"the step turned round", "labels exchanged"}
    assert set(found["gate"]) == set(found["attacks"]) == attacks
    assert all("loses more than" in why or "gains less" in why for why in found["gate"].values())
