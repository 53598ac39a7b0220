"""The scenario: real recordings in another order, the same split in every repetition."""

from itertools import takewhile

import pytest
import torch

from edge_client.samples.table import split_of
from examples.drift.har_remounted import AFTER_S, FLEET, REMOUNTED, either_side, task
from streams.segments.segmentation import segments_of
from streams.tasks import har
from tidewheel import Reading

UNTIL_US = (AFTER_S + 1000) * 1_000_000


def seen(device: str) -> list[Reading]:
    return list(takewhile(lambda r: r.time_us < UNTIL_US, task.readings(device)))


def test_no_recording_is_altered() -> None:
    known = {(tuple(r.values), r.label) for r in har.readings("person-16")}
    found = seen("person-16")
    assert len(found) > 50_000
    assert all((tuple(r.values), r.label) in known for r in found)
    times = [r.time_us for r in found]
    assert times == sorted(set(times))


@pytest.mark.parametrize("number", FLEET)
def test_a_segment_is_on_one_side_of_the_split_whenever_it_comes(number: int) -> None:
    sides: dict[bytes, set[int]] = {}
    for first, last, segment, _ in segments_of(seen(f"person-{number:02d}"), task):
        sides.setdefault(segment.tobytes(), set()).add(split_of(task, first, last))
    assert all(len(found) == 1 for found in sides.values())


def test_the_people_who_wear_it_otherwise_are_in_the_fleet_and_known_to_nobody() -> None:
    assert set(REMOUNTED) <= set(task.device_names("fleet"))
    assert not set(REMOUNTED) & set(task.device_names("pilot", "lab"))


def test_mirroring_changes_signs_alone_and_not_of_what_points_up() -> None:
    batch = torch.randn(64, 6, 128, generator=torch.Generator().manual_seed(1))
    still = either_side(batch, torch.Generator().manual_seed(2))
    turned = har.rotate(batch, _after_sides(len(batch)))
    assert torch.equal(still.abs(), turned.abs())
    assert torch.equal(still[:, [0, 2, 4]], turned[:, [0, 2, 4]])
    assert 10 < int((still[:, 1, 0] != turned[:, 1, 0]).sum()) < 54


def _after_sides(count: int) -> torch.Generator:
    generator = torch.Generator().manual_seed(2)
    torch.randint(0, 2, (count, 1), generator=generator)
    return generator
