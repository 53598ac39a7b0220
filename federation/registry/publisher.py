"""Announcement of decisions to the fleet: bytes on `artifacts`, then the decision on `releases`.

1. the decision is made: it is in the registry's history
2. put the bytes that it needs on `artifacts`, unless they are there, and wait for the broker
3. put each decision that `releases` lacks under its own key (decisions.decision_key)
4. put the last one under the task's name, with the positions of its bytes

After a crash in 1, 2 or 3 `releases` lacks decisions; the next announcement does 2 to 4 again.
Bytes that are put twice do no harm. The ends are the failpoints release-step-1 to -4.

A decision needs the artifacts of the stable version, the offered version and the teacher, and the
delta from the stable to the offered version if it is smaller; of a quantized version also what
devices need of it that do not train.

`artifacts` keeps everything, unless its cluster limits it by size, or somebody deletes its messages
or makes it anew; without the bytes a new device can install nothing. What it has lost is sent again
before the decision with the new positions: after a crash between them it is found missing again.

What is larger than the operator's limit (TIDEWHEEL_KAFKA_ARTIFACT_MB) is not put there: devices
fetch it from the decision's URL.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from federation.registry.registry import Registry
from federation.registry.restoring import check_history, check_revocations, restore
from streams.contract.artifact import is_quantized, without_float
from streams.contract.decisions import MAX_BYTES, Delivery, DesiredState, Ref, Release, decision_key
from streams.contract.errors import ArtifactError, BrokerUnavailable, MalformedRecord
from streams.contract.events.messages import Headers
from streams.contract.topics import ARTIFACTS, RELEASES, topic_name
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader, Received
from streams.kafka.settings import BrokerSettings
from streams.runtime.failpoints import Failpoint, unarmed

CHUNK = 128 * 1024  # 4 s of a line of 256 kbit/s: events wait no longer behind it
POLLS = 50  # of 0.2 s, for the first chunk of a delivery

log = logging.getLogger(__name__)


def announce(
    producer: Producer,
    registry: Registry,
    announced: Release | None,
    reached: Failpoint = unarmed,
    most: int = MAX_BYTES,
) -> Release | None:
    """Run steps 2 to 4; return the release that is then under the task's name, None before the
    first decision.

    announced: the release that is there now (`current`). most: bytes of a version on `artifacts`.
    Raises BrokerUnavailable on failure.
    """
    last = registry.last()
    if last is None:
        return announced
    if announced is not None and announced.digest == last.digest:
        return announced
    topic, task = topic_name(registry.id, RELEASES), registry.id
    known = [] if announced is None else announced.deliveries
    deliveries = deliver(producer, registry, last.decision.standing, known, most)
    reached("release-step-2")
    for release in registry.history(after=_number(announced, last)):
        producer.put(topic, decision_key(task, release.decision.seq), release.encode())
    reached("release-step-3")
    release = last.replace(deliveries=deliveries)
    producer.put(topic, task.encode(), release.encode())
    reached("release-step-4")
    return release


def _number(announced: Release | None, last: Release) -> int:
    """Return the number of the last decision of this history on `releases`."""
    if announced is None:
        return 0
    seq = announced.decision.seq
    if seq >= last.decision.seq:
        log.warning(
            "releases has decision %d of another history: devices that accepted it refuse ours; "
            "start the controller again: it restores the decisions, or says what to do", seq,
        )  # fmt: skip
        return 0
    return seq


def deliver(
    producer: Producer,
    registry: Registry,
    desired: DesiredState,
    known: list[Delivery],
    most: int = MAX_BYTES,
) -> list[Delivery]:
    """Return the positions of all needed bytes, publishing those that are not `known`."""
    found = []
    for model, base, of_part in _needed(registry, desired):
        wanted = model, base, of_part
        there = next((d for d in known if (d.model, d.base, d.of_part) == wanted), None)
        if there is None:
            data = _bytes(registry, desired.teacher, *wanted)
            if data is not None and len(data) > most:
                log.warning(
                    "%s has %.1f MB, %s carries %.1f (TIDEWHEEL_KAFKA_ARTIFACT_MB): %s",
                    model, len(data) / 1e6, ARTIFACTS, most / 1e6,
                    f"it is at {desired.url}" if desired.url else "give devices a --artifact-url",
                )  # fmt: skip
            elif data is not None:
                there = _delivered(producer, registry, data, *wanted)
        if there is not None:
            found.append(there)
    stable = desired.stable
    if stable is not None:  # late devices may still have the version before, and use its delta
        found += [d for d in known if d.model == stable.model and d.base and d not in found]
    return found


def _needed(registry: Registry, desired: DesiredState) -> list[tuple[str, str | None, bool]]:
    """Return model and base of the needed bytes, and whether they are those without floats."""
    versions = [ref for ref in (desired.stable, desired.offered) if ref]
    whole = [ref.model for ref in (*versions, desired.teacher) if ref]
    needed: list[tuple[str, str | None, bool]] = [(model, None, False) for model in whole]
    quantized = [ref for ref in versions if is_quantized(registry.manifest(ref))]
    needed += [(ref.model, None, True) for ref in quantized]
    if desired.offered is not None and desired.stable is not None:
        needed.append((desired.offered.model, desired.stable.model, False))
    return needed


def _bytes(
    registry: Registry, teacher: Ref | None, model: str, base: str | None, of_part: bool
) -> bytes | None:
    """Return what is delivered; None for a delta that cannot be made or is not smaller."""
    if teacher is not None and model == teacher.model:
        return registry.read_teacher()
    if base is None:
        data = registry.read(model)
        registry.checked(data, model)
        return without_float(data) if of_part else data
    try:
        data = registry.delta(model, base)
    except ArtifactError as exc:
        log.warning("no delta from %s to %s: %s", base, model, exc)
        return None
    return data if len(data) < len(registry.read(model)) else None


def _delivered(
    producer: Producer,
    registry: Registry,
    data: bytes,
    model: str,
    base: str | None,
    of_part: bool,
) -> Delivery:
    """Publish the bytes."""
    sha256 = hashlib.sha256(data).hexdigest()
    topic = topic_name(registry.id, ARTIFACTS)
    offsets = [
        producer.put(topic, sha256.encode(), part, headers) for part, headers in chunks(data)
    ]
    return Delivery(
        model=model,
        base=base,
        of_part=of_part,
        sha256=sha256,
        size=len(data),
        chunks=len(offsets),
        offset=offsets[0],
    )


def chunks(data: bytes, size: int = CHUNK) -> Iterator[tuple[bytes, Headers]]:
    """Yield value and headers of the messages that carry the bytes."""
    count = max(1, -(-len(data) // size))
    for index in range(count):
        part = data[index * size : (index + 1) * size]
        yield part, [("index", str(index).encode()), ("chunks", str(count).encode())]


def read_announced(settings: BrokerSettings, task: str) -> Release | None:
    """Return the release under the task's name on `releases`; raise BrokerUnavailable."""
    return current(read_releases(settings, task), task)


def take_up(settings: BrokerSettings, registry: Registry, own: Ed25519PublicKey) -> Release | None:
    """Return the release under the task's name, when a controller with the `own` key begins: steps
    1 to 4 of federation.registry.restoring. Raises BrokerUnavailable, and ArtifactError if the
    registry does not continue what was announced."""
    messages = read_releases(settings, registry.id)
    announced, last = releases(messages), current(messages, registry.id)
    restore(settings, registry, own, announced, last)
    check_revocations(registry, own, announced)
    check_history(registry, own, announced)
    return last


def read_releases(settings: BrokerSettings, task: str) -> list[Received]:
    """Return the messages of `releases`; raise BrokerUnavailable."""
    reader = Reader(settings, [topic_name(task, RELEASES)])
    try:
        return reader.read_to_end()
    finally:
        reader.close()


def current(messages: Iterable[Received], task: str) -> Release | None:
    """Return the last readable release under the task's name among the messages of `releases`."""
    found = releases(message for message in messages if message.key == task.encode())
    return found[-1] if found else None


def releases(announced: Iterable[Received]) -> list[Release]:
    """Return the readable releases among the messages, whoever signed them."""
    found = []
    for message in announced:
        try:
            release = Release.decode(message.value)
            release.decision  # noqa: B018 - whether it can be read
            found.append(release)
        except MalformedRecord:
            continue
    return found


# --- bytes that the topic has lost ----------------------------------------------------------------


def lost(settings: BrokerSettings, task: str, deliveries: Sequence[Delivery]) -> list[Delivery]:
    """Return the deliveries of which `artifacts` does not have the first chunk in its place, or not
    as many messages as there are chunks; raise BrokerUnavailable."""
    topic = topic_name(task, ARTIFACTS)
    with closing(Reader(settings, [topic])) as reader:
        ((begin, end),) = reader.bounds().values()
        return [
            each
            for each in deliveries
            if each.offset < begin
            or each.offset + each.chunks > end
            or _key_at(reader, topic, each.offset) != each.sha256.encode()
        ]


def _key_at(reader: Reader, topic: str, offset: int) -> bytes | None:
    reader.seek(topic, 0, offset)
    for _ in range(POLLS):
        for message in reader.poll(0.2, limit=1):
            return message.key if message.offset == offset else None
    raise BrokerUnavailable(f"{topic} returned no message from offset {offset} on")


def send_again(
    producer: Producer,
    registry: Registry,
    announced: Release,
    missing: Sequence[Delivery],
    most: int = MAX_BYTES,
) -> Release:
    """Send the `missing` deliveries of the announced release; return it with their new places."""
    topic = topic_name(registry.id, ARTIFACTS)
    known = [each for each in announced.deliveries if each not in missing]
    for each in missing:
        what = each.model if each.base is None else f"{each.model} from {each.base}"
        log.warning("%s no longer has the bytes of %s: they are sent again", topic, what)
    deliveries = deliver(producer, registry, announced.decision.standing, known, most)
    release = announced.replace(deliveries=deliveries)
    producer.put(topic_name(registry.id, RELEASES), registry.id.encode(), release.encode())
    return release
