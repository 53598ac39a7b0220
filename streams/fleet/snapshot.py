"""A FleetView as bytes: `view/1`, JSON compressed with zstd. Pure."""

from dataclasses import dataclass

from pydantic import TypeAdapter

from streams.contract.errors import MalformedRecord
from streams.contract.zstd import ZstdError, compressed, decompressed
from streams.fleet.view import FleetView

VIEW_1 = "view/1"
LARGEST = 1 << 28


@dataclass
class Saved:
    """time_us: when it was written, by the wall clock."""

    time_us: int
    view: FleetView


_SAVED = TypeAdapter(Saved)


def encode(view: FleetView, time_us: int) -> bytes:
    """Return the view's bytes."""
    return compressed(_SAVED.dump_json(Saved(time_us, view)))


def decode(data: bytes) -> tuple[FleetView, int]:
    """Return the view and when it was written; raise MalformedRecord for other bytes."""
    try:
        saved = _SAVED.validate_json(decompressed(data, LARGEST))
    except (ValueError, ZstdError) as exc:
        raise MalformedRecord("bad-view", str(exc)[:300]) from exc
    return saved.view, saved.time_us
