"""Download of a version's artifact: as a delta or complete, from Kafka or from a URL.

The sources are tried in order: deltas from a version that the device has, then the complete
artifact, first from Kafka, then from the URL. A delta whose result has another digest counts as
failed. What is announced or comes larger than the artifact's size in the decision is not fetched.
A device that does not train begins with a quantized version's bytes without its floats. Received
chunks survive a restart of the process:

    downloads/<sha256>.part   line 1: JSON, {sha256, size, chunks} of the bytes
                              then frames: index u32, next offset on `artifacts` i64, size u32,
                              CRC-32 u32 of these and the chunk, little-endian; the chunk

Frames are appended without fsync. When the file is opened it is truncated after the last valid
frame; the complete bytes must have the announced digest, or all chunks are discarded. Chunks that
cannot be written, on a full disk, are kept in memory only.
"""

import hashlib
import json
import logging
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from streams.contract.artifact import Artifact, digest_of
from streams.contract.decisions import Delivery, Ref
from streams.contract.errors import ArtifactError, Retryable
from streams.contract.weights import delta
from streams.kafka.artifact_download import Download, fetch, fetch_url
from streams.kafka.settings import BrokerSettings

log = logging.getLogger(__name__)

FRAME = struct.Struct("<IqI")
CHECK = struct.Struct("<I")


class PersistentDownload(Download):
    """A download that also stores its chunks in a file of `folder`, and resumes from it."""

    def __init__(self, delivery: Delivery, folder: Path) -> None:
        super().__init__(delivery)
        self._path = folder / f"{delivery.sha256}.part"
        about = {name: getattr(delivery, name) for name in ("sha256", "size", "chunks")}
        self._head = json.dumps(about).encode() + b"\n"
        try:
            self._read_back()
        except OSError as exc:
            log.warning("%s: the download starts again: %s", delivery.model, exc)

    def add(self, index: int, part: bytes) -> bool:
        """Add a chunk and store it, unless it is the last one."""
        if not super().add(index, part):
            return False
        try:
            if self.missing:
                self._append(frame(index, self.next_offset, part))
        except OSError as exc:
            log.debug("%s: a chunk was not stored: %s", self.delivery.model, exc)
        return True

    def restart(self) -> None:
        super().restart()
        self._path.unlink(missing_ok=True)

    def _append(self, data: bytes) -> None:
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            data = self._head + data
        with self._path.open("ab") as file:
            file.write(data)

    def _read_back(self) -> None:
        if not self._path.exists():
            return
        data = self._path.read_bytes()
        if not data.startswith(self._head):
            self._path.unlink()
            return
        sound = len(self._head)
        for index, offset, part in frames(data, sound):
            super().add(index, part)
            self.next_offset = max(self.next_offset, offset)
            sound += FRAME.size + CHECK.size + len(part)
        if sound < len(data):
            with self._path.open("r+b") as file:
                file.truncate(sound)


def frame(index: int, offset: int, part: bytes) -> bytes:
    """Return the frame of a chunk; `offset` is the next one to read on `artifacts`."""
    head = FRAME.pack(index, offset, len(part))
    return head + CHECK.pack(zlib.crc32(part, zlib.crc32(head))) + part


def frames(data: bytes, begin: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield index, offset and chunk of the frames from `begin` up to the first invalid one."""
    while begin + FRAME.size + CHECK.size <= len(data):
        at = begin + FRAME.size + CHECK.size
        head = data[begin : begin + FRAME.size]
        index, offset, size = FRAME.unpack(head)
        (check,) = CHECK.unpack_from(data, begin + FRAME.size)
        part = data[at : at + size]
        if len(part) < size or zlib.crc32(part, zlib.crc32(head)) != check:
            return
        yield index, offset, part
        begin = at + size


class Downloads:
    """The partial downloads of one device, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, PersistentDownload] = {}

    def of(self, delivery: Delivery) -> PersistentDownload:
        """Return the download of a delivery, resuming an earlier attempt at the same bytes."""
        found = self._open.get(delivery.sha256)
        if found is None or found.delivery != delivery:
            found = self._open[delivery.sha256] = PersistentDownload(delivery, self._folder)
        return found

    def of_url(self, url: str) -> Path:
        """Return the file of what has come from a URL: the bytes alone."""
        return self._folder / f"{hashlib.sha256(url.encode()).hexdigest()}.part"

    def keep(self, deliveries: Sequence[Delivery], urls: Sequence[str] = ()) -> None:
        """Delete all downloads except these."""
        wanted = {delivery.sha256 for delivery in deliveries}
        wanted |= {self.of_url(url).stem for url in urls}
        self._open = {sha: one for sha, one in self._open.items() if sha in wanted}
        for path in self._folder.glob("*.part"):
            if path.stem not in wanted:
                path.unlink(missing_ok=True)


# --- the sources ----------------------------------------------------------------------------------


@dataclass
class ArtifactFetcher:
    """Downloads artifacts for one device.

    bases: the versions that the device has; kept: returns one of them; trusted: the trusted keys;
    trains: whether the device needs floats; waits: whether events wait for the line.
    """

    task: str
    settings: BrokerSettings
    bases: Callable[[], Sequence[str]]
    kept: Callable[[str], Artifact]
    trusted: Callable[[], Sequence[Ed25519PublicKey]]
    downloads: Downloads
    trains: bool = True
    waits: Callable[[], bool] = lambda: False
    received: int = 0  # bytes of all downloads

    def fetch(
        self, ref: Ref, deliveries: Sequence[Delivery], url: str, stop: Callable[[], bool]
    ) -> bytes:
        """Return the bytes of the artifact with the digest of `ref`; raise the last source's
        ArtifactError or Retryable if all fail, or once `stop` returns True."""
        bases = self.bases()
        offered = [d for d in deliveries if d.model == ref.model]
        wanted = [d for d in offered if d.of_part and not self.trains]
        wanted += [d for d in offered if d.base in bases]
        wanted += [d for d in offered if d.base is None and not d.of_part]
        deltas = f"{url}/deltas/{ref.model}.from."
        urls: dict[str, str | None] = {f"{deltas}{base}.twd": base for base in bases if url}
        urls |= {f"{url}/models/{ref.model}.twa": None} if url else {}
        self.downloads.keep(offered, [*urls])
        sources = [partial(self._from_kafka, ref, delivery, stop) for delivery in wanted]
        sources += [partial(self._from_url, ref, where, stop, base) for where, base in urls.items()]
        problem: Exception = ArtifactError("missing", f"{ref.model} has no delivery and no URL")
        for source in sources:
            try:
                data = source()
            except (ArtifactError, Retryable, OSError) as exc:
                log.warning("%s: %s", ref.model, exc)
                problem = exc
                if stop():
                    break
            else:
                self.downloads.keep([])
                return data
        raise problem

    def _from_kafka(self, ref: Ref, delivery: Delivery, stop: Callable[[], bool]) -> bytes:
        delivery.check_bound(ref)  # before a part of it is in memory
        download = self.downloads.of(delivery)
        data = fetch(self.settings, self.task, download, stop, waits=self.waits)
        return self._whole(ref, data, delivery.base)

    def _from_url(
        self, ref: Ref, url: str, stop: Callable[[], bool], base: str | None = None
    ) -> bytes:
        part = self.downloads.of_url(url)
        try:
            return self._whole(ref, fetch_url(url, ref.size, stop, part=part), base)
        except ArtifactError:
            part.unlink(missing_ok=True)
            raise

    def _whole(self, ref: Ref, data: bytes, base: str | None) -> bytes:
        """Return the artifact of received bytes, which are a delta if there is a `base`."""
        self.received += len(data)
        if base is not None:
            data = delta.apply(data, self.kept(base).files, self.trusted(), ref.size)
        if digest_of(data) != ref.digest:
            raise ArtifactError("digest", f"the bytes are not {ref.model}")
        return data
