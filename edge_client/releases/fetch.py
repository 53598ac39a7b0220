"""Download of a version's artifact: as a delta or complete, from Kafka or from a URL.

The sources are tried in order: deltas from a version that the device has, then the complete
artifact, first from Kafka, then from the URL. A delta whose result has another digest counts as
failed. What is announced or comes larger than the artifact's size in the decision is not fetched.
A device that does not train begins with a quantized version's bytes without its floats.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_client.releases.partial_download import Downloads
from streams.contract.artifact import Artifact, digest_of
from streams.contract.decisions import Delivery, Ref
from streams.contract.errors import ArtifactError, Retryable
from streams.contract.weights import delta
from streams.kafka.artifact_download import fetch, fetch_url
from streams.kafka.settings import BrokerSettings

log = logging.getLogger(__name__)


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
