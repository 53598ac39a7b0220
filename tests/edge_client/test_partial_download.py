"""Parts of a version outlast the process, whatever the file has become in the meantime."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_client import fetch
from edge_client.fetch import Downloads, PersistentDownload, frame
from streams.contract.decisions import Delivery
from streams.contract.errors import ArtifactError
from streams.kafka.reader import Received

DATA = bytes(range(250)) * 4
PARTS = [DATA[at : at + 100] for at in range(0, len(DATA), 100)]
SHA = hashlib.sha256(DATA).hexdigest()
BEGIN = 7


def delivery(sha: str = SHA, offset: int = BEGIN) -> Delivery:
    return Delivery(
        model="2-aaaaaaaa", sha256=sha, size=len(DATA), chunks=len(PARTS), offset=offset
    )


def take(download: PersistentDownload, *indices: int, sha: str = SHA) -> None:
    for i in indices:
        headers = [("index", str(i).encode())]
        download.take(Received("t.artifacts", 0, BEGIN + i, sha.encode(), PARTS[i], headers))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "downloads"


def the_file(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def test_another_process_goes_on_behind_what_is_there(folder: Path) -> None:
    take(PersistentDownload(delivery(), folder), 0, 1, 2, 5)
    again = PersistentDownload(delivery(), folder)
    assert (sorted(again.parts), again.next_offset) == ([0, 1, 2, 5], BEGIN + 6)
    take(again, 3, 4, 6, 7, 8, 9)
    assert again.data() == DATA
    last = PersistentDownload(delivery(), folder)  # which was needed no more
    assert sorted(last.parts) == [*range(9)]
    take(last, 9)
    assert last.data() == DATA


def test_the_same_bytes_announced_elsewhere_go_on_as_well(folder: Path) -> None:
    take(PersistentDownload(delivery(), folder), 0, 1)
    again = PersistentDownload(delivery(offset=100), folder)
    assert (sorted(again.parts), again.next_offset) == ([0, 1], 100)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_of_a_file_that_was_cut_or_spoiled_the_sound_beginning_counts(
    folder: Path, data: st.DataObject
) -> None:
    Downloads(folder).keep([])
    take(PersistentDownload(delivery(), folder), *range(6))
    path, size = the_file(folder), len(frame(0, 0, PARTS[0]))
    whole = path.read_bytes()
    head = len(whole) - 6 * size
    at = data.draw(st.integers(head, len(whole) - 1))
    spoiled = data.draw(st.sampled_from(["cut", "changed", "zeros"]))
    changed = bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    end = {"cut": b"", "changed": changed, "zeros": bytes(len(whole) - at)}[spoiled]
    path.write_bytes(whole[:at] + end)
    again = PersistentDownload(delivery(), folder)
    sound = len(again.parts)
    assert sound >= (at - head) // size
    assert again.parts == dict(enumerate(PARTS[:sound]))
    assert again.next_offset == BEGIN + sound
    take(again, *range(sound, len(PARTS)))
    assert again.data() == DATA
    assert PersistentDownload(delivery(), folder).missing == 1


@given(st.binary(max_size=400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_file_is_read(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / f"{SHA}.part"
    path.write_bytes(noise)
    assert PersistentDownload(delivery(), tmp_path).parts == {}


def test_bytes_that_are_not_what_was_announced_are_forgotten(folder: Path) -> None:
    wrong = delivery(sha="a" * 64)
    download = PersistentDownload(wrong, folder)
    take(download, *range(len(PARTS)), sha="a" * 64)
    with pytest.raises(ArtifactError):
        download.data()
    assert list(folder.iterdir()) == []
    again = PersistentDownload(wrong, folder)
    assert (again.parts, again.next_offset) == ({}, BEGIN)


def test_more_than_was_announced_is_not_kept(folder: Path) -> None:
    download = PersistentDownload(delivery(), folder)
    headers = [("index", b"3")]
    download.take(Received("t", 0, 9, SHA.encode(), bytes(len(DATA) + 1), headers))
    assert download.parts == {}
    assert not folder.exists()


def test_a_part_that_is_too_large_does_not_keep_the_others_out(folder: Path) -> None:
    """Also where it is what the process before has left."""
    wrong = Received("t", 0, 8, SHA.encode(), bytes(len(DATA) - 50), [("index", b"3")])
    PersistentDownload(delivery(), folder).take(wrong)
    again = PersistentDownload(delivery(), folder)
    assert sorted(again.parts) == [3]
    take(again, *range(len(PARTS)))
    again = PersistentDownload(delivery(), folder)
    assert again.missing == 1
    take(again, *range(len(PARTS)))
    assert again.data() == DATA


def test_on_a_full_disk_parts_stay_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch.PersistentDownload, "_append", full)
    download = PersistentDownload(delivery(), folder)
    take(download, *range(len(PARTS)))
    assert download.data() == DATA


def test_only_what_is_wanted_is_kept(folder: Path) -> None:
    other, mine = delivery(sha="b" * 64), delivery()
    kept = Downloads(folder)
    take(kept.of(other), 0, sha="b" * 64)
    take(kept.of(mine), 0, 1)
    assert kept.of(mine).missing == 8
    kept.keep([mine])
    assert the_file(folder).stem == SHA
    assert kept.of(mine).missing == 8
    assert kept.of(other).missing == 10
    Downloads(folder).keep([])
    assert list(folder.iterdir()) == []
