"""A source may yield many readings as arrays: they are cut as one by one, and skipped as these."""

import itertools
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.contract.task import Reading, Readings, Task
from streams.contract.task.parts import one_by_one
from streams.segments.segmentation import segments_of
from streams.segments.survey import survey
from tests.rig.made_up.tiny_task import task

PERIOD_US = 50_000
Item = Reading | Readings

# How much later than usual a reading comes, in periods; its values; its label.
steps = st.sampled_from([0, 0, 0, 0, 0, 0, -1, -3, 5])
values = st.sampled_from([0.5] * 20 + [float("nan")])
labels = st.sampled_from([None, 1, 1, 1, 2, 7])


def cuts(readings: list[Item], of: Task) -> tuple[list[object], list[tuple[str, int]]]:
    skipped: list[tuple[str, int]] = []
    found = segments_of(readings, of, skip=lambda why, at: skipped.append((why, at)))
    plain = [(a, b, s.tolist(), None if y is None else y.tolist()) for a, b, s, y in found]
    return plain, skipped


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.tuples(steps, values), max_size=30), labels, st.booleans())),
    st.integers(1, 20),
)
def test_blocks_are_cut_as_their_readings(
    blocks: list[tuple[list[tuple[int, float]], int | None, bool]], hop: int
) -> None:
    of = replace(task, segment=replace(task.segment, hop=hop))
    now_us, made = 0, list[Item]()
    for rows, label, as_block in blocks:
        times = []
        for step, _ in rows:
            now_us += PERIOD_US * (1 + step)
            times.append(now_us)
        width = 1 if label == 7 else len(of.channels)  # a block of another width, now and then
        data = np.array([[value] * width for _, value in rows]).reshape(-1, width)
        block = Readings(np.array(times, np.int64), data, label)
        made += [block] if as_block else list(block.each())
    assert cuts(made, of) == cuts(list(one_by_one(made)), of)


def test_a_task_may_yield_both() -> None:
    readings = list(itertools.islice(task.readings("d0"), 100))
    block = Readings(
        np.array([r.time_us for r in readings[40:]]), np.array([r.values for r in readings[40:]])
    )
    mixed = replace(task, readings=lambda _device: [*readings[:40], block])
    found = survey(mixed, task.devices()[0])
    assert (found.error, found.segments) == (None, survey(task, task.devices()[0], 100).segments)
