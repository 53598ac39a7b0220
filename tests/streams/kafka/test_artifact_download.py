"""Bytes that come in parts, are cut off, and go on where they were."""

import contextlib
import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.contract.decisions import Delivery
from streams.contract.errors import ArtifactError, BrokerUnavailable, Retryable
from streams.kafka import artifact_download
from streams.kafka.artifact_download import Download, fetch, fetch_url
from streams.kafka.reader import Received
from streams.kafka.settings import BrokerSettings
from tests.rig.processes.polling import until

DATA = bytes(range(250)) * 4
SHA = hashlib.sha256(DATA).hexdigest()
PARTS = [DATA[at : at + 100] for at in range(0, len(DATA), 100)]
WHAT = Delivery(model="2-aaaaaaaa", sha256=SHA, size=len(DATA), chunks=len(PARTS), offset=7)


def part(index: int, offset: int, key: str = SHA, value: bytes | None = None) -> Received:
    value = PARTS[index] if value is None else value
    headers = [("index", str(index).encode())]
    return Received("t.artifacts", 0, offset, key.encode(), value, headers)


class CutReader:
    """Gives what it is told to, then loses the broker; every test's script is one list."""

    script: list[list[Received]] = []
    sought: list[int] = []

    def __init__(self, *_given: object, **_more: object) -> None:
        pass

    def end(self, *_given: object) -> int:
        return 100

    def position(self, *_given: object) -> int:
        return 50

    def seek(self, _topic: str, _partition: int, offset: int) -> None:
        self.sought.append(offset)

    def poll(self, _timeout_s: float) -> list[Received]:
        if not self.script:
            raise BrokerUnavailable("cut")
        return self.script.pop(0)

    def close(self) -> None:
        pass


def test_it_goes_on_after_a_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.kafka.reader.Reader", CutReader)
    CutReader.sought = []
    download, settings = Download(WHAT), BrokerSettings(bootstrap="x:1")
    CutReader.script = [[part(i, 7 + i) for i in range(4)]]
    with pytest.raises(BrokerUnavailable):
        fetch(settings, "t", download, lambda: False)
    assert download.missing == 6
    CutReader.script = [[part(i, 7 + i) for i in range(4, 10)]]
    assert fetch(settings, "t", download, lambda: False) == DATA
    assert CutReader.sought == [7, 11]


def test_an_end_breaks_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.kafka.reader.Reader", CutReader)
    with pytest.raises(Retryable, match="0 of 10 chunks"):
        fetch(BrokerSettings(bootstrap="x:1"), "t", Download(WHAT), lambda: True)


@given(st.permutations([*range(len(PARTS)), 0, 3]), st.integers(0, 5))
def test_any_order_and_repetition_gives_the_bytes(order: list[int], noise: int) -> None:
    download = Download(WHAT)
    for offset, index in enumerate(order):
        download.take(part(index, 7 + offset))
        if noise == offset:
            download.take(part(index, 7, key="f" * 64, value=b"another's"))
            for bad in (b"x", b"-1", b"99999999999", b"10"):
                message = part(index, 7, value=b"bad")
                download.take(replace(message, headers=[("index", bad)]))
    assert download.missing == 0
    assert download.data() == DATA


@pytest.mark.parametrize("bad", [b"", b"short", b"\0" * 100])
def test_parts_that_are_not_what_was_said_are_forgotten(bad: bytes) -> None:
    download = Download(WHAT)
    for index in range(len(PARTS)):
        download.take(part(index, 7, value=bad if index == 3 else None))
    with pytest.raises(ArtifactError):
        download.data()
    assert download.missing == len(PARTS)


def test_events_go_first_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.kafka.reader.Reader", CutReader)
    monkeypatch.setattr(artifact_download, "WAIT_S", 0.3)
    monkeypatch.setattr(artifact_download, "LOOK_S", 0.05)
    began, asked = time.monotonic(), []

    def waits() -> bool:
        asked.append(len(CutReader.script))
        return len(asked) < 5 or len(CutReader.script) < 2  # then behind the first answer for ever

    CutReader.script = [[part(i, 7 + i) for i in few] for few in (range(5), range(5, 10))]
    settings = BrokerSettings(bootstrap="x:1")
    assert fetch(settings, "t", Download(WHAT), lambda: False, waits=waits) == DATA
    assert asked[:5] == [2] * 5
    assert time.monotonic() - began > 0.3
    assert 0 not in asked  # behind the last chunk nothing is left to let pass


def test_a_line_that_brings_a_chunk_now_and_then_is_not_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(CutReader):
        def poll(self, _timeout_s: float) -> list[Received]:
            clock.now += 40.0
            return super().poll(_timeout_s)

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr("streams.kafka.reader.Reader", Slow)
    monkeypatch.setattr(artifact_download, "time", clock)
    settings = BrokerSettings(bootstrap="x:1")
    Slow.script = [[part(i, 7 + i)] for i in range(10)]
    assert fetch(settings, "t", Download(WHAT), lambda: False) == DATA
    Slow.script = [[part(0, 7)], [], [], [part(1, 8)]]
    with pytest.raises(Retryable, match="1 of 10 chunks"):
        fetch(settings, "t", Download(WHAT), lambda: False)


class Cutting(BaseHTTPRequestHandler):
    """Sends 300 bytes of what was asked for, then hangs up."""

    ranges = True

    def do_GET(self) -> None:
        begin = 0
        if (header := self.headers.get("Range")) and self.ranges:
            begin = int(header.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(DATA) - begin))
        self.end_headers()
        self.wfile.write(DATA[begin : begin + 300])

    def log_message(self, *_args: object) -> None:
        return


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/x"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_url_is_taken_up_where_it_was_cut_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact_download, "RESUME_S", 0.2)
    with served(Cutting) as url:
        began = time.monotonic()
        assert fetch_url(url) == DATA
        assert time.monotonic() - began >= 3 * 0.2
        with pytest.raises(ArtifactError, match="more than 500 bytes"):
            fetch_url(url, limit=500)


@pytest.mark.parametrize("left", [0, 1, 299, 999, 1000, 1005])
@pytest.mark.parametrize("ranges", [True, False])
def test_another_process_takes_a_url_up_where_a_killed_one_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int, ranges: bool
) -> None:
    class Whole(Cutting):
        def do_GET(self) -> None:
            header = self.headers.get("Range") if ranges else None
            begin = int(header.removeprefix("bytes=").rstrip("-")) if header else 0
            asked.append(begin)
            if begin >= len(DATA):
                self.send_error(416)
                return
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(DATA) - begin))
            self.end_headers()
            self.wfile.write(DATA[begin:])

    asked: list[int] = []
    kept = tmp_path / "downloads" / "x.part"
    with served(Whole) as url:
        wrong = bytes(5) if left > len(DATA) else b""
        kept.parent.mkdir()
        kept.write_bytes(DATA[:left] + wrong)
        found = fetch_url(url, part=kept, limit=2000)
        assert asked == [len(DATA[:left] + wrong) if ranges else 0]
        assert found == kept.read_bytes() == DATA + (wrong if ranges else b"")


def test_what_came_from_a_url_before_a_kill_stays(tmp_path: Path) -> None:
    gone = threading.Event()

    class Hanging(Cutting):
        def do_GET(self) -> None:
            super().do_GET()
            gone.wait(20)

    kept = tmp_path / "x.part"
    with served(Hanging) as url:
        code = "from pathlib import Path; from streams.kafka.artifact_download import fetch_url; "
        code += f"fetch_url({url!r}, part=Path({str(kept)!r}))"
        child = subprocess.Popen([sys.executable, "-c", code])
        until(lambda: kept.exists() and kept.stat().st_size == 300, "a part has come", 30)
        child.kill()
        child.wait()
        gone.set()
        assert kept.read_bytes() == DATA[:300]
        assert fetch_url(url, part=kept) == DATA


@pytest.mark.parametrize("slow", ["headers", "body"])
def test_a_server_that_sends_a_byte_now_and_then_does_not_hold_a_download(slow: str) -> None:
    gone = threading.Event()

    class Slow(Cutting):
        def do_GET(self) -> None:
            head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(DATA)}\r\n\r\n".encode()
            if slow == "body":
                self.wfile.write(head)
            with contextlib.suppress(OSError):
                while not gone.wait(0.02):
                    self.wfile.write(b"x")

    with served(Slow) as url:
        began = time.monotonic()
        with pytest.raises(Retryable, match="broken off after"):
            fetch_url(url, timeout_s=0.5)
        with pytest.raises(Retryable, match="broken off after"):
            fetch_url(url, stop=lambda: True)
        gone.set()
        assert time.monotonic() - began < 10


def test_a_server_without_ranges_that_always_cuts_is_given_up() -> None:
    class Stubborn(Cutting):
        ranges = False

    with served(Stubborn) as url, pytest.raises(Retryable, match="cut after 300 of 1000"):
        fetch_url(url)


def test_what_is_not_there_and_no_http_url_are_told() -> None:
    class Absent(Cutting):
        def do_GET(self) -> None:
            self.send_error(404)

    with served(Absent) as url, pytest.raises(Retryable, match="404"):
        fetch_url(url)
    with pytest.raises(Retryable):
        fetch_url("http://127.0.0.1:9/x")
    for url in ("file:///etc/passwd", "ftp://x/y", ""):
        with pytest.raises(ArtifactError, match="neither https nor http"):
            fetch_url(url)
