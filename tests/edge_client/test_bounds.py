"""What is fetched for a decided version is bounded by the size that the decision signs, whatever
its delivery, which nobody signs, announces."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.fetch import ArtifactFetcher, Downloads
from federation.registry import publisher
from streams.contract.decisions import CHUNK_BYTES, MAX_BYTES, Delivery, Ref
from streams.contract.errors import ArtifactError
from streams.contract.topics import ARTIFACTS, topic_name
from tests.edge_client.test_downlink import Rig, rig

__all__ = ["rig"]
REF = Ref(model="2-aaaaaaaa", digest="a" * 64, size=10_000)


def delivery(size: int, chunks: int = 1, base: str | None = None) -> Delivery:
    return Delivery(
        model=REF.model, base=base, sha256="b" * 64, size=size, chunks=chunks, offset=0
    )  # fmt: skip


@pytest.mark.kafka
@pytest.mark.parametrize("delta", [False, True])
def test_a_delivery_of_a_gibibyte_for_a_sound_decision_is_not_buffered(
    rig: Rig, delta: bool
) -> None:
    first, before = str(rig.slots.active), rig.downlink.received_bytes
    made = rig.registry.add(rig.version(2))
    said = rig.registry.serve(made.model, rig.key, "a test")
    assert said.decision.standing.stable is not None
    assert said.decision.standing.stable.size == len(rig.registry.read(made.model))
    sha, part = hashlib.sha256(b"never complete").hexdigest(), bytes(500_000)
    offsets = [
        rig.producer.put(
            topic_name(rig.task.id, ARTIFACTS), sha.encode(), part, [("index", b"%d" % i)]
        )
        for i in range(3)
    ]
    huge = Delivery(
        model=made.model, base=first if delta else None, sha256=sha, size=MAX_BYTES, chunks=2148,
        offset=offsets[0],
    )  # fmt: skip
    rig.say(said.replace(deliveries=[huge]))
    rig.complains(f"size: {MAX_BYTES} bytes in 2148 chunks are announced")
    assert rig.slots.active == first
    assert rig.downlink.received_bytes == before
    assert not list(rig.folder.glob("downloads/*"))
    rig.told = publisher.announce(rig.producer, rig.registry, rig.told)
    rig.serves(made.model)


@given(st.integers(1, MAX_BYTES), st.integers(1, MAX_BYTES), st.integers(1, MAX_BYTES))
def test_only_what_the_artifact_can_need_is_within_the_bound(
    announced: int, chunks: int, most: int
) -> None:
    ref = REF.replace(size=most)
    found = delivery(announced, chunks)
    if announced > most or chunks > 1 + announced // CHUNK_BYTES:
        with pytest.raises(ArtifactError, match=f"^size: {announced} bytes in {chunks} chunks"):
            found.check_bound(ref)
    else:
        found.check_bound(ref)


def test_a_url_is_read_up_to_the_signed_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []

    def fetch_url(url: str, limit: int, stop: object, part: Path) -> bytes:
        limits.append(limit)
        raise ArtifactError("url", f"{url} returns more than {limit} bytes")

    monkeypatch.setattr("edge_client.fetch.fetch_url", fetch_url)
    fetcher = ArtifactFetcher(
        "tiny", None, bases=lambda: ["1-cccccccc"], kept=None, trusted=list,  # type: ignore[arg-type]
        downloads=Downloads(tmp_path),
    )  # fmt: skip
    with pytest.raises(ArtifactError, match="returns more than 10000 bytes"):
        fetcher.fetch(REF, [], "http://nowhere", lambda: False)
    assert limits == [REF.size, REF.size]
