"""Ranges of partitions cut into shards: step 2 of a job that scores `events`.

The range of a job was frozen when it was submitted. A shard is a range of offsets, from the first
to the last message that has a row which is selected; messages that are none have no time, and are
rows of the shards they lie in.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streams.batch.history.events import add_message, chosen_times, event_of
from streams.batch.history.topic import Broker, messages, place_of, reading
from streams.batch.records.documents import Frozen, Named, Plan, PlannedFile, Selection, Shard
from streams.batch.records.rows import RowProblem
from streams.contract.accounting import IntervalSet
from streams.contract.events.batches import times_us
from streams.contract.task import Task

if TYPE_CHECKING:
    from streams.kafka.reader import Received

SHARD_EVENTS = 20_000

Taken = dict[tuple[str, str], IntervalSet]  # the seqs of each device and epoch so far


def plan_topic(
    task: Task,
    frozen: Frozen,
    inputs: list[Named],
    selection: Selection,
    broker: Broker | None,
    check: Callable[[], None],
    most: int = SHARD_EVENTS,
) -> Plan:
    """Return the plan of the partitions; raise TidewheelError if messages of their ranges are gone,
    `most` is how many rows a shard has at least before it ends."""
    files: list[PlannedFile] = []
    shards: list[Shard] = []
    with reading(broker, frozen.topic) as reader:
        for index, (file, (start, stop)) in enumerate(zip(inputs, frozen.ranges, strict=True)):
            topic, partition = place_of(file)
            found = messages(reader, topic, partition, start, stop) if stop > start else ()
            cuts, size = cut(task, index, found, selection, check, most)
            shards += cuts
            whole = hashlib.sha256("".join(one.sha256 for one in cuts).encode())
            files.append(
                PlannedFile(
                    name=file.name,
                    path=file.path,
                    sha256=whole.hexdigest(),
                    bytes=size,
                    modified=f"offsets {start} to {stop}",
                    rows=sum(one.rows for one in cuts),
                )
            )
    return Plan(files=files, shards=shards)


@dataclass
class _Open:
    """A shard that is being cut; `whole` is it up to the last message with a selected row."""

    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    start: int | None = None
    rows: int = 0
    repeats: list[tuple[int, int, int]] = field(default_factory=list)
    whole: Shard | None = None


def cut(
    task: Task,
    index: int,
    found: "Iterable[Received]",
    selection: Selection,
    check: Callable[[], None],
    most: int,
) -> tuple[list[Shard], int]:
    """Return the shards of the messages of one partition, and the bytes of all messages."""
    cuts: list[Shard] = []
    taken: Taken = {}
    opened, first, size = _Open(), 0, 0
    everything = selection.from_us is None and selection.to_us is None
    for message in found:
        check()
        size += len(message.value or b"")
        events = event_of(task, message)
        rows, chosen, repeats = 0, False, list[tuple[int, int, int]]()
        if isinstance(events, RowProblem):
            rows, chosen = 1, everything
        elif events is not None:
            rows = events.rows.num_rows
            known = taken.setdefault((events.device, events.epoch), IntervalSet())
            repeats = [(message.offset, *one) for one in known.within(events.first, events.last)]
            known.add(events.first, events.last)
            chosen = bool(chosen_times(times_us(events.rows.column("time")), selection).any())
        if opened.start is None and not chosen:
            continue
        opened.start = message.offset if opened.start is None else opened.start
        add_message(opened.digest, message)
        opened.rows += rows
        opened.repeats += repeats
        if chosen:
            opened.whole = Shard(
                file=index, start=opened.start, stop=message.offset + 1, first_row=first,
                rows=opened.rows, repeats=list(opened.repeats), sha256=opened.digest.hexdigest(),
            )  # fmt: skip
            if opened.rows >= most:
                cuts.append(opened.whole)
                first, opened = first + opened.rows, _Open()
    if opened.whole is not None:
        cuts.append(opened.whole)
    return cuts, size
