"""Zstandard frames (RFC 8878), by Python's `compression.zstd` or, before 3.14, its backport."""

import sys

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["MAGIC", "ZstdError", "compressed", "decompressed", "zstd"]

ZstdError = zstd.ZstdError
MAGIC = b"\x28\xb5\x2f\xfd"
LEAST = 8  # bytes of a dictionary, by the library


def compressed(data: bytes, level: int = 3, base: bytes | None = None) -> bytes:
    """Return one frame that says its size; with `base` as its dictionary, if there is one."""
    return zstd.compress(data, level, zstd_dict=_dictionary(base))


def decompressed(data: bytes, limit: int, base: bytes | None = None) -> bytes:
    """Decompress one frame of at most `limit` bytes, by its header and in fact.

    Raises ValueError for a frame that says no size or a larger one, and for bytes that are no
    frame, or more or less than one; ZstdError for a damaged one.
    """
    size = zstd.get_frame_info(data).decompressed_size
    if size is None or size > limit:
        raise ValueError(f"a zstd frame has {size} bytes; {limit} are allowed")
    unpacker = zstd.ZstdDecompressor(zstd_dict=_dictionary(base))
    found = unpacker.decompress(data, max_length=size + 1)
    if len(found) != size or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"a zstd frame of {size} bytes is cut short, or bytes follow it")
    return found


def _dictionary(base: bytes | None) -> zstd.ZstdDict | None:
    return zstd.ZstdDict(base, is_raw=True) if base and len(base) >= LEAST else None
