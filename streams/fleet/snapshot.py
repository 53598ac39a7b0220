"""A FleetView as bytes: `view/1`, JSON compressed with zstd. Pure."""

from dataclasses import dataclass

import zstandard
from pydantic import TypeAdapter, ValidationError

from streams.contract.errors import MalformedRecord
from streams.fleet.view import FleetView

VIEW_1 = "view/1"
SIZE = 8  # bytes before the compressed ones: the size of the others
LARGEST = 1 << 28


@dataclass
class Saved:
    """time_us: when it was written, by the wall clock."""

    time_us: int
    view: FleetView


_SAVED = TypeAdapter(Saved)


def encode(view: FleetView, time_us: int) -> bytes:
    """Return the view's bytes."""
    text = _SAVED.dump_json(Saved(time_us, view))
    return b"".join([len(text).to_bytes(SIZE, "big"), zstandard.compress(text)])


def decode(data: bytes) -> tuple[FleetView, int]:
    """Return the view and when it was written; raise MalformedRecord for other bytes."""
    size = int.from_bytes(data[:SIZE], "big")
    if not len(data) > SIZE or not 0 < size <= LARGEST:
        raise MalformedRecord("bad-view", f"{len(data)} bytes are no view")
    try:
        if zstandard.frame_content_size(data[SIZE:]) != size:
            raise MalformedRecord("bad-view", f"a view of {size} bytes has another size")
        saved = _SAVED.validate_json(zstandard.decompress(data[SIZE:]))
    except (ValidationError, zstandard.ZstdError) as exc:
        raise MalformedRecord("bad-view", str(exc)[:300]) from exc
    return saved.view, saved.time_us
