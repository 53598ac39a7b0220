"""What kafka-python needs to decode: one thread that compiles, and zstd from Python.

The library compiles the decoder of a kind of response when the first one comes, and keeps it for
the process. Meanwhile it changes an attribute that all threads share, and then sets it back
(`StructField.compiled_decode_from` of 3.0.12). Two threads whose first responses come together, as
uplink and downlink of a device that starts, can so make a decoder that fails for ever with a
TypeError, "object.__new__(X): X is not a type object": no client of that process reaches a broker
again. The library tells it in its log alone, and reports timeouts.

`install` puts a lock around it, for encoders too, which share the cache.

The library looks for zstd in the package `zstandard` alone, which is 24 MB on each device;
`install` gives it Python's own (streams.contract.zstd).
"""

import threading
from typing import IO, Any

import kafka.codec
from kafka.protocol.schemas.fields.struct import StructField

from streams.contract.zstd import zstd

_compiling = threading.RLock()  # a decoder may need another one
_decoder = StructField.compiled_decode_from
_encoder = StructField.compiled_encode_into


def _compiled_decode_from(self: Any, *given: Any, **named: Any) -> Any:
    with _compiling:
        return _decoder(self, *given, **named)


def _compiled_encode_into(self: Any, *given: Any, **named: Any) -> Any:
    with _compiling:
        return _encoder(self, *given, **named)


class _Compressor:
    compress = staticmethod(zstd.compress)


class _Decompressor:
    @staticmethod
    def stream_reader(source: IO[bytes], *, read_across_frames: bool) -> Any:
        assert read_across_frames  # what a ZstdFile does
        return zstd.open(source)


class Zstandard:
    """As much of the package `zstandard` as kafka-python uses."""

    ZstdCompressor = _Compressor
    ZstdDecompressor = _Decompressor


def install() -> None:
    """Let all clients of this process compile and compress as above."""
    kafka.codec.zstd = Zstandard
    StructField.compiled_decode_from = _compiled_decode_from
    StructField.compiled_encode_into = _compiled_encode_into
