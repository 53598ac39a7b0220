"""A released version that many devices decline: they answer with an earlier one. Pure.

Each of them has evidence of its own that the version is worse there (`Training.choice`). If that is
so for LEAST devices and the share SHARE of those that serve it, the canary was misled, and the
version is taken back.
"""

from collections.abc import Iterable

from streams.contract.documents import DeviceState

LEAST, SHARE = 3, 0.5


def declined(present: Iterable[DeviceState], stable: str) -> str | None:
    """Return why the stable version is not served further; None if too few devices decline it."""
    serving = [state for state in present if state.active == stable]
    keeping = sum(state.kept is not None and state.kept.against == stable for state in serving)
    if keeping < LEAST or keeping < SHARE * len(serving):
        return None
    return f"{keeping} of {len(serving)} devices keep an earlier version, which is better there"
