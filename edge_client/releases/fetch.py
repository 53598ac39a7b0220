"""Download of a version's artifact: as a delta or complete, from Kafka or from a URL.

The sources are tried in order: deltas from a version that the device has, then the complete
artifact, first from Kafka, then from the URL. A delta whose result has another digest counts as
failed. What is announced or comes larger than the artifact's size in the decision is not fetched.
A device that does not train begins with a quantized version's bytes without its floats.
"""

import logging
from collections.abc import Callable, Sequence
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


class ArtifactFetcher:
    """Downloads artifacts for one device.

    bases: the versions that the device has; kept: returns one of them; trusted: the trusted keys;
    trains: whether the device needs floats.
    """

    def __init__(
        self,
        task: str,
        settings: BrokerSettings,
        *,
        bases: Callable[[], Sequence[str]],
        kept: Callable[[str], Artifact],
        trusted: Callable[[], Sequence[Ed25519PublicKey]],
        downloads: Downloads,
        trains: bool = True,
    ) -> None:
        self._task, self._settings = task, settings
        self._bases, self._kept, self._trusted = bases, kept, trusted
        self._downloads, self._trains = downloads, trains
        self.received = 0  # bytes of all downloads

    def fetch(
        self, ref: Ref, deliveries: Sequence[Delivery], url: str, stop: Callable[[], bool]
    ) -> bytes:
        """Return the bytes of the artifact with the digest of `ref`; raise the last source's
        ArtifactError or Retryable if all fail, or once `stop` returns True."""
        bases = self._bases()
        offered = [d for d in deliveries if d.model == ref.model]
        self._downloads.keep(offered)
        wanted = [d for d in offered if d.of_part and not self._trains]
        wanted += [d for d in offered if d.base in bases]
        wanted += [d for d in offered if d.base is None and not d.of_part]
        sources = [partial(self._from_kafka, ref, delivery, stop) for delivery in wanted]
        if url:
            deltas = f"{url}/deltas/{ref.model}.from."
            sources += [partial(self._from_url, ref, f"{deltas}{b}.twd", stop, b) for b in bases]
            sources.append(partial(self._from_url, ref, f"{url}/models/{ref.model}.twa", stop))
        problem: Exception = ArtifactError("missing", f"{ref.model} has no delivery and no URL")
        for source in sources:
            try:
                data = source()
                if digest_of(data) != ref.digest:
                    raise ArtifactError("digest", f"the bytes are not {ref.model}")
            except (ArtifactError, Retryable, OSError) as exc:
                log.warning("%s: %s", ref.model, exc)
                problem = exc
                if stop():
                    break
            else:
                self._downloads.keep([])
                return data
        raise problem

    def _from_kafka(self, ref: Ref, delivery: Delivery, stop: Callable[[], bool]) -> bytes:
        delivery.check_bound(ref)  # before a part of it is in memory
        data = fetch(self._settings, self._task, self._downloads.of(delivery), stop)
        return self._whole(ref, data, delivery.base)

    def _from_url(
        self, ref: Ref, url: str, stop: Callable[[], bool], base: str | None = None
    ) -> bytes:
        return self._whole(ref, fetch_url(url, ref.size, stop), base)

    def _whole(self, ref: Ref, data: bytes, base: str | None) -> bytes:
        """Return the artifact of received bytes, which are a delta if there is a `base`."""
        self.received += len(data)
        if base is None:
            return data
        return delta.apply(data, self._kept(base).files, self._trusted(), ref.size)
