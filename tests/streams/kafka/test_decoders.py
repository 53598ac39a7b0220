"""Two threads that compile the decoder of a kind of response together get one that decodes."""

import threading
from typing import Any

import pytest
from kafka.protocol.metadata import ApiVersionsRequest, ApiVersionsResponse, MetadataResponse
from kafka.protocol.schemas.fields.struct import StructField

from streams.kafka import decoders, refusals

WAIT_S = 60.0
VERSION = 3


class Meeting:
    """Two threads in a compilation: the second one begins while the first is in it, and goes on
    when the first has left it. With a lock it does not come in before that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside, self.left, self.asked = (threading.Event() for _ in range(3))
        emit = StructField.emit_decode_from

        def emit_decode_from(struct: Any, ctx: Any, name: str, *given: Any, **named: Any) -> None:
            if name == "obj" and threading.current_thread().name == "first":
                self.inside.set()
                assert self.asked.wait(WAIT_S)
                self.left.wait(0.3)  # time for the second one to come in
            elif name == "obj":
                assert self.left.wait(WAIT_S)
            emit(struct, ctx, name, *given, **named)

        monkeypatch.setattr(StructField, "emit_decode_from", emit_decode_from)

    def first(self, decode: Any) -> None:
        decode()
        self.left.set()

    def second(self, decode: Any) -> None:
        assert self.inside.wait(WAIT_S)
        self.asked.set()
        decode()


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An ApiVersionsResponse whose decoder is not compiled yet."""
    made = ApiVersionsResponse(version=VERSION, error_code=0, api_keys=[], throttle_time_ms=7)
    encoded = bytes(made.encode(version=VERSION))
    monkeypatch.setattr(ApiVersionsResponse._struct, "_compiled_encoders", {})
    return encoded


def decoded(answer: bytes) -> int:
    return int(ApiVersionsResponse.decode(answer, version=VERSION).throttle_time_ms)


def meet(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    meeting = Meeting(monkeypatch)
    threads = [
        threading.Thread(target=of, args=(lambda: decoded(answer),), name=name, daemon=True)
        for name, of in (("first", meeting.first), ("second", meeting.second))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_a_decoder_that_two_threads_compile_together_decodes(
    monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    meet(monkeypatch, answer)
    assert decoded(answer) == 7


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_without_the_lock_the_library_keeps_one_that_never_does(
    monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    """When this fails the library has mended it, and streams/kafka/decoders.py can go."""
    monkeypatch.setattr(StructField, "compiled_decode_from", decoders._decoder)
    meet(monkeypatch, answer)
    with pytest.raises(TypeError, match="not a type object"):
        decoded(answer)


def test_every_client_has_it() -> None:
    assert refusals is not None  # whatever imports the library imports it
    for of in (ApiVersionsRequest, MetadataResponse):
        assert type(of._struct).compiled_decode_from is decoders._compiled_decode_from
        assert type(of._struct).compiled_encode_into is decoders._compiled_encode_into
