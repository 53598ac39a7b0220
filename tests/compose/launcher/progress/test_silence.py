"""A device that was started and says nothing is told of, once."""

from compose.launcher.progress.silence import SILENT_S, SilenceWatch, silent
from streams.fleet.view import FleetView
from tests.compose.messages import TASK, state

DEVICES = ["d0", "d1", "d2"]


def view_of(**heard_us: int) -> FleetView:
    view = FleetView(TASK)
    for device, time_us in heard_us.items():
        view.absorb(state(device, time_us=time_us))
    return view


def test_what_was_said_before_the_start_does_not_count() -> None:
    assert silent(view_of(d0=100, d1=99), DEVICES, began_us=100) == ["d1", "d2"]


def test_each_silent_device_is_told_of_once_and_not_before_its_time() -> None:
    watch = SilenceWatch(DEVICES, began_us=100)
    view = view_of(d0=100, d1=99)
    assert watch.look(view, SILENT_S - 0.1) == []
    assert watch.look(view, SILENT_S) == ["d1", "d2"]
    assert watch.look(view, SILENT_S + 9) == []


def test_a_device_that_speaks_in_time_is_not_told_of() -> None:
    watch = SilenceWatch(DEVICES, began_us=100)
    assert watch.look(view_of(d0=100, d1=101, d2=102), SILENT_S + 60) == []
