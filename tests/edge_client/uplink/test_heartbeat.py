from typing import Any

import pytest

from edge_client.uplink.heartbeat import AFTER_WORK_S, AT_WORK_S, EVERY_S, FIGURES, Heartbeat
from streams.contract.documents import DeviceState
from tests.fakes.documents import device_state


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"produced": 5, "delivered": 4, "pending": 1, "events_per_s": 9.0}, False),
        ({"phase": "training"}, True),
        ({"active": "2-b"}, True),
        ({"refused": {"2-b": "late"}}, True),
        ({"error": "no broker"}, True),
        ({"dropped": {"metered": 1}}, True),
    ],
)
def test_a_change_is_told_at_the_next_look(change: dict[str, Any], *, told: bool) -> None:
    beat = Heartbeat()
    assert beat.looks(0.0)
    assert beat.due(device_state(), 0.0)
    assert not beat.looks(0.5)
    assert beat.looks(1.0)
    assert beat.due(device_state(**change), 1.0) == told
    assert beat.looks(EVERY_S)
    assert beat.due(device_state(**change), EVERY_S) != told  # as long after the last one
    assert beat.looks(1.0 + EVERY_S)
    assert beat.due(device_state(dropped={"metered": 7}, **{"phase": "x"}), 1.0 + EVERY_S)


def test_a_reason_that_is_known_is_no_change() -> None:
    beat = Heartbeat()
    assert beat.due(device_state(dropped={"metered": 1}), 0.0)
    assert not beat.due(device_state(dropped={"metered": 900}), 5.0)


def test_a_rate_limit_makes_them_rare() -> None:
    beat = Heartbeat()
    assert beat.looks(0.0)
    beat.pause(0.0, 60.0)
    assert not beat.looks(59.0)
    assert beat.interval_s == 60.0
    beat.at_once()
    assert beat.looks(59.0)


def test_the_figures_are_fields() -> None:
    assert DeviceState.model_fields.keys() > FIGURES


def test_at_work_there_is_one_a_second_and_for_a_while_afterwards() -> None:
    beat = Heartbeat()
    sent: dict[int, float] = {}
    for second in range(60):
        if second == 3:
            beat.work()
        if second == 20:
            beat.rest(20.0)
        if beat.looks(second) and beat.due(device_state(), second):
            sent[second] = beat.interval_s
    quick = range(3, 20 + round(AFTER_WORK_S))
    usual = [quick.stop, quick.stop + 10, quick.stop + 20]
    assert sent == {0: EVERY_S} | dict.fromkeys(quick, AT_WORK_S) | dict.fromkeys(usual, EVERY_S)


def test_one_that_is_quicker_anyway_stays_so_at_work() -> None:
    beat = Heartbeat(0.5)
    beat.work()
    assert beat.due(device_state(), 0.0)
    assert beat.interval_s == 0.5
