"""Recovery of a lost registry from Kafka: `releases` has every announced decision, `artifacts` the
bytes of all offered versions.

1. read `releases`: the last announced decision, and those before it down to the first, each signed
   by a key that was trusted then
2. read `artifacts`, and store what a decision names: models/, and teacher.twa unless it is still
   the decided one; read the held-out people
3. write the decisions, the first one first

A crash before 3 leaves versions that no decision names; one during 3 a shorter history. A repeated
call completes both, and a registry that was partly lost. If the registry has a decision that was
not announced, nothing is written.
"""

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

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
from streams.runtime.failpoints import Failpoint, unarmed

SILENCE_S = 15.0

log = logging.getLogger(__name__)


@dataclass
class Restored:
    """missing: decided versions whose bytes were never offered, `needed` those of them that are
    current; strangers: unknown keys that signed later decisions."""

    decisions: int = 0
    models: list[str] = field(default_factory=list)
    teacher: str | None = None
    missing: list[str] = field(default_factory=list)
    needed: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)


def restore(
    registry: Registry,
    settings: BrokerSettings,
    held_out: Callable[[], bytes],
    failpoint: Failpoint = unarmed,
    own: Ed25519PublicKey | None = None,
) -> Restored:
    """Restore the registry; `held_out` reads the held-out people, `own` is the key that signs here.

    Raises UsageError if the registry is not lost or nothing was announced, ArtifactError if a
    decision is missing, BrokerUnavailable without a broker.
    """
    announced = releases(messages(settings, topic_name(registry.task, RELEASES)))
    history = chain(registry, announced, own)
    _check_lost(registry, history)
    failpoint("restore-step-1")
    found = Restored(len(history), strangers=strangers(registry, announced, len(history)))
    _keep_bytes(registry, history, messages(settings, topic_name(registry.task, ARTIFACTS)), found)
    if registry.heldout() is None:
        registry.set_heldout(held_out())
    failpoint("restore-step-2")
    there = set(registry.numbered())
    for release in history:
        if (name := _file(release.decision.seq)) not in there:
            plain = release.model_copy(update={"deliveries": []})
            registry.store.create(f"history/{name}", plain.encode())
            failpoint("restore-step-3")
    _note_missing(registry, history, found)
    return found


def messages(settings: BrokerSettings, topic: str) -> Iterator[Received]:
    """Yield all current messages of the topic."""
    reader = Reader(settings, [topic])
    try:
        end, heard = reader.end(topic, 0), time.monotonic()
        while reader.position(topic, 0) < end:
            if batch := reader.poll(0.25, limit=16):
                heard = time.monotonic()
                yield from batch
            elif time.monotonic() - heard > SILENCE_S:
                raise BrokerUnavailable(
                    f"{settings.bootstrap} sent nothing of {topic} for {SILENCE_S:.0f} s"
                )
    finally:
        reader.close()


def _check_lost(registry: Registry, history: Sequence[Release]) -> None:
    if not history:
        raise UsageError(
            f"`releases` has no decision about {registry.task} that a key of this state folder "
            "signed: check --kafka, and restore the keys first"
        )
    announced = {_file(release.decision.seq): release.digest for release in history}
    revoked = history[-1].decision.standing.revoked
    for name in registry.numbered():
        try:
            kept = Release.decode(registry.store.read(f"history/{name}"))
            signer = kept.decision.key
        except MalformedRecord as exc:
            raise UsageError(
                f"{registry.where}/history/{name} is damaged: remove it first"
            ) from exc
        if announced.get(name) == kept.digest:
            continue
        if signer in revoked:
            raise UsageError(
                f"{registry.where}/history/{name} is signed by key {signer}, which is revoked, and "
                "was not announced: take away its owner's access to the registry, remove the file"
            )
        raise UsageError(
            f"{registry.where} has another decision {int(name[:8])}: it is not lost; use an "
            "empty --registry, or move it away first"
        )


def _file(seq: int) -> str:
    return f"{seq:08d}.json"


def _keep_bytes(
    registry: Registry, history: Sequence[Release], chunks: Iterable[Received], found: Restored
) -> None:
    """Store the artifacts that a decision names; of teachers only the last, unless the registry
    still has it."""
    wanted = _named(history)
    teacher = history[-1].decision.standing.teacher
    if teacher is not None and _kept_teacher(registry) == teacher.digest:
        found.teacher = teacher.model
    for data in whole(chunks):
        try:
            digest = digest_of(data)
            if teacher is not None and digest == teacher.digest and found.teacher is None:
                found.teacher = registry.add_teacher(data).model
            elif digest in wanted:
                found.models.append(registry.add(data).model)
                log.info("restored %s", found.models[-1])
        except ArtifactError as exc:  # a delta, or of another registry
            log.debug("ignored bytes on artifacts: %s", exc)


def _kept_teacher(registry: Registry) -> str | None:
    """Return the digest of the registry's teacher; None without a valid one."""
    try:
        kept = registry.teacher()
    except ArtifactError:
        return None
    return None if kept is None else kept.digest


def _named(history: Sequence[Release]) -> dict[str, Ref]:
    """Return the named versions by digest."""
    standings = [release.decision.standing for release in history]
    refs = [ref for s in standings for ref in (s.stable, s.offered, s.candidate) if ref]
    return {ref.digest: ref for ref in refs}


def whole(chunks: Iterable[Received]) -> Iterator[bytes]:
    """Yield the bytes whose chunks are complete, each once."""
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
            open_.popitem(last=False)  # the oldest incomplete one


def _note_missing(registry: Registry, history: Sequence[Release], found: Restored) -> None:
    """Report missing versions, and mark those that are not needed as removed."""
    last, kept = history[-1].decision.standing, {*registry.models()}
    found.models = sorted(set(found.models), key=lambda model: int(model.partition("-")[0]))
    found.missing = sorted({ref.model for ref in _named(history).values()} - kept)
    now = last.model_copy(update={"candidate": None})  # the controller drops a missing one
    found.needed = [m for m in found.missing if m in needed(registry, now)]
    if last.teacher is not None and found.teacher is None:
        found.missing.append(last.teacher.model)
        found.needed.append(last.teacher.model)
    for model in {*found.missing} - {*found.needed}:
        mark = Pruned(model=model, time_us=time.time_ns() // 1000)
        registry.store.write(f"pruned/{model}.json", mark.encode())
