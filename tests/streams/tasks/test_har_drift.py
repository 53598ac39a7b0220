"""Drift on the real data: people who wear the phone otherwise in a later recording alarm."""

import numpy as np
import pytest

from federation.bootstrap.dataset import Segments, accumulated, make_reference, segments_of_device
from streams.contract.window_report import DriftReport
from streams.learning.drift_detector import compare
from streams.learning.drift_reference import WINDOWS, Reference
from streams.tasks.har import task

OTHERWISE = ("person-09", "person-10", "person-16")  # acc-y is turned round from recording 2 on
FALSE_ALARMS = 0.03  # of the reports of people whose phone stays as the lab's


def answers(device: Segments) -> np.ndarray:
    """Input channels alone are looked at: the answers are all the same."""
    return np.zeros((len(device.times), task.outputs), np.float32)


@pytest.fixture(scope="module")
def frozen() -> Reference:
    lab = [segments_of_device(task, name) for name in task.device_names("pilot", "lab")]
    return make_reference(task, lab, [answers(device) for device in lab])


@pytest.fixture(scope="module")
def reports(frozen: Reference) -> dict[str, list[DriftReport]]:
    """Per person, the report at each window, as a worker makes them."""
    found = {}
    for name in task.device_names("fleet", "held-out"):
        device = segments_of_device(task, name)
        counted = accumulated(task, frozen, device, answers(device))
        found[name] = [compare(frozen, counts, windows=WINDOWS) for counts in counted]
    return found


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_phone_that_is_mounted_otherwise_alarms(
    name: str, reports: dict[str, list[DriftReport]]
) -> None:
    first, last = reports[name][0], reports[name][-1]
    assert not first.alarm  # the first recording
    assert last.alarm
    assert last.worst == "acc-y"
    alarmed = {(c.channel, c.kind) for r in reports[name] for c in r.channels if c.alarm}
    assert alarmed == {("acc-y", "mean")}
    assert last.share == pytest.approx(1 / 7)  # of six channels and the predictions


def test_quiet_people_stay_under_the_stated_rate(reports: dict[str, list[DriftReport]]) -> None:
    quiet = {name: found for name, found in reports.items() if name not in OTHERWISE}
    assert len(quiet) == 19
    alarms = {name: sum(r.alarm for r in found) for name, found in quiet.items()}
    assert sum(alarms.values()) <= FALSE_ALARMS * sum(len(found) for found in quiet.values())
    assert sum(n > 0 for n in alarms.values()) <= 2
    assert all(r.decided for found in quiet.values() for r in found)


def test_most_quiet_people_never_alarm_at_the_end_of_their_recordings(
    reports: dict[str, list[DriftReport]],
) -> None:
    ends = {name for name, found in reports.items() if found[-1].alarm}
    assert set(OTHERWISE) <= ends
    assert len(ends - set(OTHERWISE)) <= 1
