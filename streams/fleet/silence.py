"""When a device that should be heard of counts as silent."""

from streams.contract.documents import DeviceState

SILENT_S, MISSED = 15.0, 3  # after so long, and so many heartbeats


def is_silent(state: DeviceState, now_s: float) -> bool:
    """Return whether a device that has not said goodbye is not heard of; `now_s`: wall clock."""
    age_s = now_s - state.time_us / 1e6
    return state.phase != "stopped" and age_s > max(SILENT_S, MISSED * state.heartbeat_s)
