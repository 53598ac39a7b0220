"""`up` names, once, the devices that were started and report nothing."""

from compose.launcher.progress.phases import EACH_S, SILENT_S, SilenceWatch, silent
from streams.fleet.view import FleetView
from tests.compose.messages import TASK, state

DEVICES = ["d0", "d1", "d2"]


def view_of(**heard_us: int) -> FleetView:
    view = FleetView(TASK)
    for device, time_us in heard_us.items():
        view.absorb(state(device, time_us=time_us))
    return view


def test_a_report_from_before_the_start_does_not_count() -> None:
    assert silent(view_of(d0=100, d1=99), DEVICES, began_us=100) == ["d1", "d2"]


def test_silent_devices_are_found_once_and_not_before_their_time() -> None:
    watch = SilenceWatch(DEVICES, began_us=100)
    view = view_of(d0=100, d1=99)
    assert watch.look(view, watch.patience_s - 0.1) == []
    assert watch.look(view, watch.patience_s) == ["d1", "d2"]
    assert watch.look(view, watch.patience_s + 9) == []


def test_devices_that_report_in_time_are_not_found() -> None:
    watch = SilenceWatch(DEVICES, began_us=100)
    assert watch.look(view_of(d0=100, d1=101, d2=102), watch.patience_s + 60) == []


def test_more_devices_take_longer_to_start() -> None:
    assert SilenceWatch(DEVICES * 100, began_us=100).patience_s == SILENT_S + 300 * EACH_S
