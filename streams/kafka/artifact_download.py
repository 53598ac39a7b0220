"""Fetching bytes that a release delivers, from their chunks on `artifacts` or from a URL.

`artifacts` has one partition; a message holds a part of some bytes, its key is their SHA-256, its
headers are `index` and `chunks`. Parts of different bytes may interleave, and each may stand there
twice: whoever fetches begins at the delivery's offset and takes those with its key, by index.
"""

import hashlib
import http.client
import logging
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field

from streams.contract.decisions import MAX_BYTES, Delivery
from streams.contract.errors import ArtifactError, Retryable
from streams.contract.topics import ARTIFACTS, topic_name
from streams.kafka.reader import Reader, Received
from streams.kafka.settings import BrokerSettings

FETCH_S = 60.0
URL_S = 10.0  # for each answer

log = logging.getLogger(__name__)


@dataclass
class Download:
    """The parts of one delivery that have come: kept over a cut, so that it goes on from there."""

    delivery: Delivery
    parts: dict[int, bytes] = field(default_factory=dict)
    next_offset: int = 0

    def __post_init__(self) -> None:
        self.next_offset = self.delivery.offset

    @property
    def missing(self) -> int:
        return self.delivery.chunks - len(self.parts)

    def take(self, message: Received) -> None:
        """A message of `artifacts`, whether it is a part or not."""
        self.next_offset = message.offset + 1
        if message.key != self.delivery.sha256.encode() or message.value is None:
            return
        index = dict(message.headers).get("index", b"")
        if index.isdigit() and len(index) < 10:
            self.add(int(index), message.value)

    def add(self, index: int, part: bytes) -> bool:
        """Keep a part that is missing; False where it is none. Where all together are more than was
        announced, one of those before is not what it says: they are forgotten."""
        size, known = self.delivery.size, index in self.parts or index >= self.delivery.chunks
        if known or len(part) > size:
            return False
        if sum(map(len, self.parts.values())) + len(part) > size:
            self.restart()
        self.parts[index] = part
        return True

    def restart(self) -> None:
        """Forget all that has come."""
        self.parts.clear()
        self.next_offset = self.delivery.offset

    def data(self) -> bytes:
        """All of it, checked; ArtifactError, and nothing is kept, where it is not what was said."""
        data = b"".join(self.parts[i] for i in range(self.delivery.chunks))
        want = self.delivery
        if len(data) != want.size:
            self.restart()
            raise ArtifactError("truncated", f"{len(data)} bytes, {want.size} were announced")
        if hashlib.sha256(data).hexdigest() != want.sha256:
            self.restart()
            raise ArtifactError("digest", "the bytes differ from the digest that was announced")
        return data


def fetch(
    settings: BrokerSettings,
    task: str,
    download: Download,
    ending: threading.Event,
    timeout_s: float = FETCH_S,
) -> bytes:
    """The bytes. Retryable when they do not come in time or `ending` is set, what has come stays in
    the download; ArtifactError when they are not there, or not what was announced."""
    topic, want = topic_name(task, ARTIFACTS), download.delivery
    deadline = time.monotonic() + timeout_s
    reader = Reader(settings, [topic])
    try:
        end = reader.end(topic, 0)
        reader.seek(topic, 0, min(download.next_offset, end))
        while download.missing:
            if ending.is_set() or time.monotonic() > deadline:
                have = want.chunks - download.missing
                raise Retryable(f"{want.model}: {have} of {want.chunks} chunks")
            messages = reader.poll(0.25)
            for message in messages:
                download.take(message)
            if not messages and download.missing and reader.position(topic, 0) >= end:
                have, download.next_offset = want.chunks - download.missing, want.offset
                raise ArtifactError(
                    "missing",
                    f"{have} of {want.chunks} chunks of {want.model} are on {topic} from offset "
                    f"{want.offset} on",
                )
    finally:
        reader.close()
    return download.data()


def fetch_url(url: str, limit: int = MAX_BYTES) -> bytes:
    """The bytes at `url`, at most `limit`, taken up again where a connection was cut; Retryable.
    http and https alone: what comes is as untrusted as what Kafka gives."""
    if not url.startswith(("https://", "http://")):
        raise ArtifactError("url", f"{url[:80]} is neither https nor http")
    data = bytearray()
    while True:
        request = urllib.request.Request(url)
        if data:
            request.add_header("Range", f"bytes={len(data)}-")
        before = len(data)
        try:
            with urllib.request.urlopen(request, timeout=URL_S) as answer:
                if data and answer.status != 206:  # it knows of no ranges: from the beginning
                    data.clear()
                whole = _told_length(answer.headers.get("Content-Length"), len(data))
                while chunk := answer.read(1 << 16):
                    data += chunk
                    if len(data) > limit:
                        raise ArtifactError("url", f"{url} gives more than {limit} bytes")
        except urllib.error.HTTPError as exc:
            exc.close()  # it holds the connection
            raise Retryable(f"{url}: {exc}") from exc
        except (OSError, ValueError, http.client.HTTPException) as exc:
            raise Retryable(f"{url}: {exc}") from exc
        if whole is None or len(data) >= whole:
            return bytes(data)
        if len(data) <= before:
            raise Retryable(f"{url}: cut after {len(data)} of {whole} bytes")


def _told_length(header: str | None, have: int) -> int | None:
    return have + int(header) if header and header.isdigit() else None
