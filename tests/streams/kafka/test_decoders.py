"""Two threads that compile the decoder of a kind of response together get one that decodes."""

import subprocess
import sys
import threading
from typing import Any

import pytest
from kafka.protocol.metadata import ApiVersionsResponse
from kafka.protocol.schemas.fields.struct import StructField

from tests.rig.processes.forks import ROOT

WAIT_S = 60.0
VERSION = 3


class Meeting:
    """Two threads in a compilation: the second one begins while the first is in it, and goes on
    when the first has left it. With a lock it cannot begin before that: the first waits for it
    `wait_s`, and goes on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wait_s: float) -> None:
        self.inside, self.left, self.both = (threading.Event() for _ in range(3))
        emit = StructField.emit_decode_from

        def emit_decode_from(struct: Any, ctx: Any, name: str, *given: Any, **named: Any) -> None:
            if name == "obj" and threading.current_thread().name == "first":
                self.inside.set()
                self.both.wait(wait_s)
            elif name == "obj" and threading.current_thread().name == "second":
                self.both.set()
                assert self.left.wait(WAIT_S)
            emit(struct, ctx, name, *given, **named)

        monkeypatch.setattr(StructField, "emit_decode_from", emit_decode_from)

    def first(self, decode: Any) -> None:
        decode()
        self.left.set()

    def second(self, decode: Any) -> None:
        assert self.inside.wait(WAIT_S)
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


def meet(monkeypatch: pytest.MonkeyPatch, answer: bytes, wait_s: float) -> Meeting:
    meeting = Meeting(monkeypatch, wait_s)
    threads = [
        threading.Thread(target=of, args=(lambda: decoded(answer),), name=name, daemon=True)
        for name, of in (("first", meeting.first), ("second", meeting.second))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    return meeting


def test_a_decoder_that_two_threads_compile_together_decodes(
    monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    assert not meet(monkeypatch, answer, 0.3).both.is_set()
    assert decoded(answer) == 7


IMPORTS = """
import {module}
from kafka.protocol.schemas.fields.struct import StructField
print(StructField.compiled_decode_from.__module__, StructField.compiled_encode_into.__module__)
"""


@pytest.mark.parametrize("module", ["admin", "producer", "reader"])
def test_whatever_uses_the_library_mends_it(module: str) -> None:
    code = IMPORTS.format(module=f"streams.kafka.{module}")
    found = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert found.split() == ["streams.kafka.patches"] * 2
