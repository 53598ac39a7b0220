"""The view is the sum of what the topics say, whatever comes twice or cannot be read."""

import pytest

from streams.contract.documents import RoundEvent
from streams.fleet.view import FleetView, model_number, round_line
from streams.kafka.reader import Received
from tests.compose.messages import TASK, received, release, state, step, window


def view(*messages: Received) -> FleetView:
    made = FleetView(TASK)
    for message in messages:
        made.absorb(message)
    return made


def test_it_follows_four_topics_of_its_task() -> None:
    assert FleetView.topics(TASK) == ["tiny.fleet", "tiny.windows", "tiny.releases", "tiny.rounds"]


def test_a_report_that_comes_again_counts_once() -> None:
    once = view(window("d0", 0), window("d1", 0), window("d0", 5))
    again = view(
        window("d0", 0), window("d0", 0), window("d1", 0), window("d0", 5), window("d0", 0)
    )
    assert once.agreement == again.agreement
    assert (once.windows, again.windows) == (3, 3)
    total = again.agreement["1-aaaaaaaa"]
    assert (total.windows, total.events, total.compared, total.agreeing) == (3, 30, 24, 18)
    assert total.value == pytest.approx(0.75)


def test_a_revision_adds_its_events_to_the_window() -> None:
    found = view(window("d0", 0), window("d0", 0, revision=1, events=2, compared=2, agreeing=0))
    assert (found.windows, found.windows_late) == (1, 1)
    total = found.agreement["1-aaaaaaaa"]
    assert (total.events, total.compared, total.agreeing) == (12, 10, 6)


def test_versions_are_counted_apart_and_nothing_compared_is_no_share() -> None:
    found = view(window("d0", 0), window("d0", 5, model="2-b", compared=0, agreeing=0))
    assert found.agreement["1-aaaaaaaa"].value == pytest.approx(0.75)
    assert found.agreement["2-b"].value is None


@pytest.mark.parametrize("topic", ["fleet", "windows", "rounds", "releases"])
@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"\xff", b'{"device": 1}'])
def test_garbage_is_counted_and_changes_nothing(topic: str, value: bytes) -> None:
    found = view(state("d0"), received(topic, TASK, value), window("d0", 0))
    assert found.unreadable == 1
    assert (list(found.devices), found.windows) == (["d0"], 1)
    assert (found.rounds, found.decisions) == ([], {})


def test_the_last_word_of_a_device_counts() -> None:
    found = view(state("d0", produced=1), state("d1"), state("d0", produced=9))
    assert {name: s.produced for name, s in found.devices.items()} == {"d0": 9, "d1": 10}


def test_a_release_is_news_once() -> None:
    first, second = release("1-aaaaaaaa", 1), release("2-bbbbbbbb", 2)
    found = view(first, release("1-aaaaaaaa", 1, key="tiny/00000001"), second)
    assert found.standing.stable is not None
    assert found.standing.stable.model == "2-bbbbbbbb"
    assert [d.model for d in found.decisions.values()] == ["1-aaaaaaaa", "2-bbbbbbbb"]
    assert list(found.news) == [
        "release: all devices serve 1-aaaaaaaa: a test",
        "release: all devices serve 2-bbbbbbbb: a test",
    ]  # fmt: skip


def test_the_first_and_the_last_version() -> None:
    score = {"answers": 1}
    empty = view()
    assert (empty.first_model, empty.last_model) == (None, None)
    devices = view(
        state("d0", active="10-c", accuracy={"10-c": score, "2-b": score}),
        state("d1", active="2-b", accuracy={"2-b": score}),
    )
    assert (devices.first_model, devices.last_model) == ("2-b", "10-c")  # numbers, not text
    devices.absorb(release("11-dddddddd", 3))
    assert devices.last_model == "10-c"  # offered, but no device serves it yet


def test_the_current_run_is_the_latest_one_that_said_anything() -> None:
    found = view(step("started", "1"), step("finished", "1"), step("requested", "2"))
    assert [(e.run, e.kind) for e in found.current_run] == [("2", "requested")]
    assert (found.count("finished"), found.count("promoted")) == (1, 0)
    assert view().current_run == []


@pytest.mark.parametrize(("model", "number"), [("3-1f2e3d4c", 3), ("x-1", -1), ("", -1)])
def test_the_number_of_a_version(model: str, number: int) -> None:
    assert model_number(model) == number


def test_what_is_too_small_to_tell_is_no_news() -> None:
    assert round_line(RoundEvent(run="1", kind="started", time_us=1)) is None
    refused = RoundEvent(run="1", kind="refused", time_us=1, round=2, rounds=3, device="d0",
                         reason="norm: too far")  # fmt: skip
    assert round_line(refused) == "round 2 of 3: update of d0 refused: norm: too far"
    assert len(view(step("started"), step("aggregated", samples=5)).news) == 1
