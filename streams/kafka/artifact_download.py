"""Download of the bytes of a delivery, from their chunks on `artifacts` or from a URL.

`artifacts` has one partition. A message holds one chunk; its key is the SHA-256 of all bytes, its
headers are `index` and `chunks`. Chunks of different deliveries may interleave and may be repeated:
a reader starts at the delivery's offset and collects the chunks with its key, by index.

One chunk is asked for at a time, and none while events wait for the line (`waits`); but after
WAIT_S one is, so that a device with a backlog of days still gets a version.
"""

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from streams.contract.decisions import MAX_BYTES, Delivery
from streams.contract.errors import ArtifactError, Retryable
from streams.contract.topics import ARTIFACTS, topic_name
from streams.kafka.settings import BrokerSettings

if TYPE_CHECKING:  # an agent loads Kafka's library after its start
    from streams.kafka.reader import Received

FETCH_S = 60.0  # without a chunk
WAIT_S = 30.0
URL_S, URL_MOST_S = 10.0, 600.0  # timeouts of a response, and of a whole download
LOOK_S = 0.25  # between two looks at whether a download is broken off
RESUME_S = 1.0  # before a URL is taken up where it was cut

log = logging.getLogger(__name__)


@dataclass
class Download:
    """The received chunks of one delivery; kept when a connection is cut, to resume there."""

    delivery: Delivery
    parts: dict[int, bytes] = field(default_factory=dict)
    next_offset: int = 0

    def __post_init__(self) -> None:
        self.next_offset = self.delivery.offset

    @property
    def missing(self) -> int:
        return self.delivery.chunks - len(self.parts)

    def take(self, message: "Received") -> None:
        """Process a message of `artifacts`; ignores those of other deliveries."""
        self.next_offset = message.offset + 1
        if message.key != self.delivery.sha256.encode() or message.value is None:
            return
        index = dict(message.headers).get("index", b"")
        if index.isdigit() and len(index) < 10:
            self.add(int(index), message.value)

    def add(self, index: int, part: bytes) -> bool:
        """Add a missing chunk and return True; return False if it is not one.

        If the chunks exceed the announced size, an earlier one was wrong: all are discarded.
        """
        size, known = self.delivery.size, index in self.parts or index >= self.delivery.chunks
        if known or len(part) > size:
            return False
        if sum(map(len, self.parts.values())) + len(part) > size:
            self.restart()
        self.parts[index] = part
        return True

    def restart(self) -> None:
        """Discard all chunks."""
        self.parts.clear()
        self.next_offset = self.delivery.offset

    def data(self) -> bytes:
        """Return all bytes, verified; on a mismatch discard them and raise ArtifactError."""
        data = b"".join(self.parts[i] for i in range(self.delivery.chunks))
        want = self.delivery
        if len(data) != want.size:
            self.restart()
            raise ArtifactError("truncated", f"{len(data)} bytes, but {want.size} were announced")
        if hashlib.sha256(data).hexdigest() != want.sha256:
            self.restart()
            raise ArtifactError("digest", "the bytes do not match the announced digest")
        return data


def fetch(
    settings: BrokerSettings,
    task: str,
    download: Download,
    stop: Callable[[], bool],
    timeout_s: float = FETCH_S,
    waits: Callable[[], bool] = lambda: False,
) -> bytes:
    """Return the bytes of a delivery from Kafka.

    Raises Retryable on a timeout or once `stop` returns True, which is asked every LOOK_S (received
    chunks stay in the download), and ArtifactError if chunks are missing on the topic or do not
    match the announcement.
    """
    topic, want = topic_name(task, ARTIFACTS), download.delivery
    from streams.kafka.reader import Reader

    def let_pass(until: float) -> None:
        while waits() and not stop() and time.monotonic() < until:
            time.sleep(LOOK_S)

    with contextlib.closing(Reader(settings, [topic], slow_line=True)) as reader:
        let_pass(time.monotonic() + WAIT_S)
        deadline = time.monotonic() + timeout_s
        end = reader.end(topic, 0)
        reader.seek(topic, 0, min(download.next_offset, end))
        while download.missing:
            if stop() or time.monotonic() > deadline:
                have = want.chunks - download.missing
                raise Retryable(f"{want.model}: {have} of {want.chunks} chunks")
            messages = reader.poll(LOOK_S)
            for message in messages:
                download.take(message)
            if messages and download.missing:
                let_pass(time.monotonic() + WAIT_S)
                deadline = time.monotonic() + timeout_s
            if not messages and download.missing and reader.position(topic, 0) >= end:
                have, download.next_offset = want.chunks - download.missing, want.offset
                raise ArtifactError(
                    "missing",
                    f"{have} of {want.chunks} chunks of {want.model} are on {topic} from offset "
                    f"{want.offset} on",
                )
    return download.data()


def fetch_url(
    url: str,
    limit: int = MAX_BYTES,
    stop: Callable[[], bool] = lambda: False,
    timeout_s: float = URL_MOST_S,
    part: Path | None = None,
) -> bytes:
    """Return the bytes at an http or https `url`, at most `limit`; raise Retryable on failure,
    after `timeout_s` in all, or once `stop` returns True, which is asked every LOOK_S.

    Resumes after a cut connection, and with the file `part` after the end of the process: a caller
    that finds the bytes wrong removes it. They are untrusted, like those from Kafka.
    """
    if not url.startswith(("https://", "http://")):
        raise ArtifactError("url", f"{url[:80]} is neither https nor http")
    download, deadline = _UrlDownload(url, limit, part), time.monotonic() + timeout_s
    download.start()
    try:
        while download.is_alive():
            download.join(LOOK_S)
            if download.is_alive() and (stop() or time.monotonic() > deadline):
                raise Retryable(f"{url}: broken off after {len(download.data)} bytes")
    finally:
        download.broken_off.set()
    if download.error is not None:
        raise download.error
    return bytes(download.data)


class _UrlDownload(threading.Thread):
    """Reads a URL in a thread of its own: a name that is not resolved and headers that come byte by
    byte hold it for as long as they like. Broken off it ends with its next bytes."""

    def __init__(self, url: str, limit: int, part: Path | None) -> None:
        super().__init__(name="download", daemon=True)
        self._url, self._limit, self._part = url, limit, part
        self.data = bytearray(part.read_bytes() if part is not None and part.exists() else b"")
        self.error: Exception | None = None
        self.broken_off = threading.Event()

    def run(self) -> None:
        import http.client  # few devices have a URL to fetch from

        try:
            while not self._read() and not self.broken_off.wait(RESUME_S):
                log.info("%s: cut after %d bytes, taken up there", self._url, len(self.data))
        except (ArtifactError, Retryable) as exc:
            self.error = exc
        except (OSError, ValueError, http.client.HTTPException) as exc:
            self.error = Retryable(f"{self._url}: {exc}")
            self.error.__cause__ = exc

    def _read(self) -> bool:
        """Read on from where it was cut; return whether that was all."""
        import urllib.error
        import urllib.request

        url, data = self._url, self.data
        request = urllib.request.Request(url)
        if data:
            request.add_header("Range", f"bytes={len(data)}-")
        before = len(data)
        try:
            with urllib.request.urlopen(request, timeout=URL_S) as answer:
                if data and answer.status != 206:  # no support for ranges: start again
                    data.clear()
                    self._keep(b"", "wb")
                whole = _total_length(answer.headers.get("Content-Length"), len(data))
                while (chunk := answer.read1(1 << 16)) and not self.broken_off.is_set():
                    data += chunk
                    self._keep(chunk)
                    if len(data) > self._limit:
                        raise ArtifactError("url", f"{url} returns more than {self._limit} bytes")
        except urllib.error.HTTPError as exc:
            exc.close()  # it keeps the connection open
            if data and exc.code == 416:  # nothing is behind what a killed process has left
                return True
            raise
        if whole is None or len(data) >= whole:
            return True
        if len(data) <= before:
            raise Retryable(f"{url}: cut after {len(data)} of {whole} bytes")
        return False

    def _keep(self, chunk: bytes, mode: str = "ab") -> None:
        if self._part is not None:
            with contextlib.suppress(OSError):  # a full disk
                self._part.parent.mkdir(parents=True, exist_ok=True)
                with self._part.open(mode) as file:
                    file.write(chunk)


def _total_length(header: str | None, have: int) -> int | None:
    return have + int(header) if header and header.isdigit() else None
