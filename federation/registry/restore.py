"""A registry that was lost, made again from Kafka: `releases` has every decision that devices were
told, `artifacts` the bytes of all that they were offered.

1. read `releases`: what was told last, and the decisions before it down to the first, each signed
   by a key that counted then
2. read `artifacts`, and keep what one of them names: models/, teacher.twa; read the people held out
3. write the decisions, the first one first

A crash before 3 leaves versions that no decision names; one during 3 a shorter history. Doing it
again goes on with both, and what was lost in part is filled up. Where a decision is there that was
not told, nothing is written.
"""

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from federation.registry.manual import Pruned, needed
from federation.registry.published_chain import chain, releases, strangers
from federation.registry.registry import Registry
from streams.contract.artifact import digest_of
from streams.contract.decisions import MAX_BYTES, Ref, Release
from streams.contract.errors import (
    ArtifactError,
    BrokerUnavailable,
    MalformedRecord,
    UsageError,
)
from streams.contract.topics import ARTIFACTS, RELEASES, topic_name
from streams.kafka.reader import Reader, Received
from streams.kafka.settings import BrokerSettings

SILENCE_S = 15.0

log = logging.getLogger(__name__)


@dataclass
class Restored:
    """missing: versions that were decided about and whose bytes nobody was offered, `needed` those
    of them that hold now; strangers: keys that nothing here names and that sign later decisions."""

    decisions: int = 0
    models: list[str] = field(default_factory=list)
    teacher: str | None = None
    missing: list[str] = field(default_factory=list)
    needed: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)


def restore(
    registry: Registry, settings: BrokerSettings, held_out: Callable[[], bytes]
) -> Restored:
    """Do it; `held_out` reads the people held out. UsageError where the registry is not lost or
    nothing was told; ArtifactError where a decision is missing; BrokerUnavailable."""
    told = releases(messages(settings, topic_name(registry.task, RELEASES)))
    history = chain(registry, told)
    _check_lost(registry, history)
    found = Restored(len(history), strangers=strangers(registry, told, len(history)))
    _keep_bytes(registry, history, messages(settings, topic_name(registry.task, ARTIFACTS)), found)
    if registry.heldout() is None:
        registry.set_heldout(held_out())
    there = set(registry.numbered())
    for release in history:
        if (name := _file(release.decision.seq)) not in there:
            plain = release.model_copy(update={"deliveries": []})
            registry.store.create(f"history/{name}", plain.encode())
    _note_missing(registry, history, found)
    return found


def messages(settings: BrokerSettings, topic: str) -> Iterator[Received]:
    """All that the topic has now."""
    reader = Reader(settings, [topic])
    try:
        end, heard = reader.end(topic, 0), time.monotonic()
        while reader.position(topic, 0) < end:
            if batch := reader.poll(0.25, limit=16):
                heard = time.monotonic()
                yield from batch
            elif time.monotonic() - heard > SILENCE_S:
                raise BrokerUnavailable(f"{settings.bootstrap} gives no more of {topic}")
    finally:
        reader.close()


def _check_lost(registry: Registry, history: Sequence[Release]) -> None:
    if not history:
        raise UsageError(
            f"`releases` has no decision about {registry.task} that a key of this state folder "
            "signed: name the right --kafka, and put the keys back first"
        )
    told = {_file(release.decision.seq): release.digest for release in history}
    for name in registry.numbered():
        try:
            kept = Release.decode(registry.store.read(f"history/{name}"))
        except MalformedRecord as exc:
            raise UsageError(
                f"{registry.where}/history/{name} is damaged: remove it first"
            ) from exc
        if told.get(name) != kept.digest:
            raise UsageError(
                f"{registry.where} has a decision {int(name[:8])} of its own: it is not lost; name "
                "an empty place by --registry, or put it away first"
            )


def _file(seq: int) -> str:
    return f"{seq:08d}.json"


def _keep_bytes(
    registry: Registry, history: Sequence[Release], chunks: Iterable[Received], found: Restored
) -> None:
    """Those that a decision names; of teachers the last."""
    wanted = _named(history)
    teacher = history[-1].decision.standing.teacher
    for data in whole(chunks):
        try:
            digest = digest_of(data)
            if teacher is not None and digest == teacher.digest:
                found.teacher = registry.add_teacher(data).model
            elif digest in wanted:
                found.models.append(registry.add(data).model)
                log.info("%s is here again", found.models[-1])
        except ArtifactError as exc:  # a delta, or not ours
            log.debug("some bytes are passed over: %s", exc)


def _named(history: Sequence[Release]) -> dict[str, Ref]:
    """By digest."""
    standings = [release.decision.standing for release in history]
    refs = [ref for s in standings for ref in (s.stable, s.offered, s.candidate) if ref]
    return {ref.digest: ref for ref in refs}


def whole(chunks: Iterable[Received]) -> Iterator[bytes]:
    """What the chunks on `artifacts` are parts of, each once, as it becomes whole."""
    done: set[bytes] = set()
    open_: OrderedDict[bytes, dict[int, bytes]] = OrderedDict()
    for message in chunks:
        headers = dict(message.headers)
        index, count = headers.get("index", b""), headers.get("chunks", b"")
        sound = index.isdigit() and count.isdigit() and len(index + count) < 20
        if not sound or message.key is None or message.value is None or message.key in done:
            continue
        parts = open_.setdefault(message.key, {})
        parts.setdefault(int(index), message.value)
        if len(parts) == int(count):
            data = b"".join(part for _, part in sorted(open_.pop(message.key).items()))
            if hashlib.sha256(data).hexdigest().encode() == message.key:
                done.add(message.key)
                yield data
        while sum(len(p) for parts in open_.values() for p in parts.values()) > MAX_BYTES:
            open_.popitem(last=False)  # what was never whole


def _note_missing(registry: Registry, history: Sequence[Release], found: Restored) -> None:
    """Bytes that are gone for good are marked as removed."""
    last, kept = history[-1].decision.standing, {*registry.models()}
    found.models = sorted(set(found.models), key=lambda model: int(model.partition("-")[0]))
    found.missing = sorted({ref.model for ref in _named(history).values()} - kept)
    now = last.model_copy(update={"candidate": None})  # which is dropped where it is not here
    found.needed = [m for m in found.missing if m in needed(registry, now)]
    if last.teacher is not None and found.teacher is None:
        found.missing.append(last.teacher.model)
        found.needed.append(last.teacher.model)
    for model in {*found.missing} - {*found.needed}:
        mark = Pruned(model=model, time_us=time.time_ns() // 1000)
        registry.store.write(f"pruned/{model}.json", mark.encode())
