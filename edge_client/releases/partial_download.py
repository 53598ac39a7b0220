"""Partial downloads on disk: received chunks survive a restart of the process.

    downloads/<sha256>-<chunks>/<index>-<next offset>   a chunk; where to read on, on `artifacts`
    downloads/<SHA-256 of a URL>.part                   what has come from a URL: the bytes alone

A chunk is renamed to its name when it is written, without fsync: it is there as a whole, or not at
all, also after SIGKILL. After a power cut it may be damaged; the complete bytes must have the
announced digest, or all chunks are discarded. Chunks that cannot be written, on a full disk, are
kept in memory only.
"""

import hashlib
import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from streams.contract.decisions import Delivery
from streams.kafka.artifact_download import Download

log = logging.getLogger(__name__)


class PersistentDownload(Download):
    """A download that also stores its chunks in `folder`, and resumes from them."""

    def __init__(self, delivery: Delivery, folder: Path) -> None:
        super().__init__(delivery)
        self._folder = folder / _name(delivery)
        with suppress(OSError, ValueError):  # what cannot be read is received again
            for path in self._folder.glob("*-*"):
                index, offset = map(int, path.name.split("-"))
                super().add(index, path.read_bytes())
                self.next_offset = max(self.next_offset, offset)

    def add(self, index: int, part: bytes) -> bool:
        """Add a chunk and store it, unless it is the last one."""
        if not super().add(index, part):
            return False
        try:
            if self.missing:
                self._store(f"{index}-{self.next_offset}", part)
        except OSError as exc:
            log.debug("%s: a chunk was not stored: %s", self.delivery.model, exc)
        return True

    def restart(self) -> None:
        super().restart()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _store(self, name: str, part: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "chunk").write_bytes(part)
        (self._folder / "chunk").replace(self._folder / name)


class Downloads:
    """The partial downloads of one device, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, PersistentDownload] = {}

    def of(self, delivery: Delivery) -> PersistentDownload:
        """Return the download of a delivery, resuming an earlier attempt at the same bytes."""
        found = self._open.get(_name(delivery))
        if found is None or found.delivery != delivery:
            found = self._open[_name(delivery)] = PersistentDownload(delivery, self._folder)
        return found

    def of_url(self, url: str) -> Path:
        """Return the file of what has come from a URL."""
        return self._folder / f"{hashlib.sha256(url.encode()).hexdigest()}.part"

    def keep(self, deliveries: Sequence[Delivery], urls: Sequence[str] = ()) -> None:
        """Delete all downloads except these."""
        wanted = {*map(_name, deliveries), *(self.of_url(url).name for url in urls)}
        self._open = {name: one for name, one in self._open.items() if name in wanted}
        for path in self._folder.glob("*"):
            if path.is_dir() and path.name not in wanted:
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in wanted:
                path.unlink(missing_ok=True)


def _name(delivery: Delivery) -> str:
    return f"{delivery.sha256}-{delivery.chunks}"
