"""Compiling kafka-python's decoders in one thread at a time.

The library compiles the decoder of a kind of response when the first one comes, and keeps it for
the process. Meanwhile it changes an attribute that all threads share, and then sets it back
(`StructField.compiled_decode_from` of 3.0.12). Two threads whose first responses come together, as
uplink and downlink of a device that starts, can so make a decoder that fails for ever with a
TypeError, "object.__new__(X): X is not a type object": no client of that process reaches a broker
again. The library tells it in its log alone, and reports timeouts.

`install` puts a lock around it, for encoders too, which share the cache.
"""

import threading
from typing import Any

from kafka.protocol.schemas.fields.struct import StructField

_compiling = threading.RLock()  # a decoder may need another one
_decoder = StructField.compiled_decode_from
_encoder = StructField.compiled_encode_into


def _compiled_decode_from(self: Any, *given: Any, **named: Any) -> Any:
    with _compiling:
        return _decoder(self, *given, **named)


def _compiled_encode_into(self: Any, *given: Any, **named: Any) -> Any:
    with _compiling:
        return _encoder(self, *given, **named)


def install() -> None:
    """Let all clients of this process compile as above."""
    StructField.compiled_decode_from = _compiled_decode_from
    StructField.compiled_encode_into = _compiled_encode_into
