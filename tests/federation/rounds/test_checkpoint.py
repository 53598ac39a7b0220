from pathlib import Path

import numpy as np
import pytest

from federation.admission import Quarantine
from federation.rounds import checkpoint
from federation.rounds.checkpoint import About, Checkpoint, Lasting
from streams.contract.errors import MalformedRecord
from tests.rig.unwrap import unwrap


def sample(number: int = 1, run: str = "7") -> Checkpoint:
    about = About(
        run=run,
        resumed_from="6",
        round=number,
        task="tiny",
        task_version=1,
        base="1-a",
        settings=Lasting(rounds=3, epochs=1, learning_rate=0.1, margin=0.0, seed=-7),
        counts={"admitted": 5, "refused": 1},
        norms=[0.1, 1 / 3, 1e300],
        node_of={"d0": 2**64 - 1},
        strategy="fedadam",
        conduct=Quarantine(refused={3}, received={"00ff"}, strikes={3: 1}, until={4: 9}),
    )
    weights = {"w": np.full((2, 3), number, np.float32), "n": np.array(7, np.int64)}
    server = {"momentum.w": np.full((2, 3), 0.5), "none": np.zeros((0, 2), np.float16)}
    return Checkpoint(about, weights, server)


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, sample())
    found = unwrap(checkpoint.latest(tmp_path, "7"))
    assert found.about == sample().about
    for have, want in ((found.weights, sample().weights), (found.server, sample().server)):
        assert list(have) == sorted(want)
        for name, value in want.items():
            assert (have[name].dtype, have[name].shape) == (value.dtype, value.shape)
            assert have[name].tobytes() == value.tobytes()


def test_the_last_rounds_are_kept_only(tmp_path: Path) -> None:
    for number in (0, 1, 2, 3):
        checkpoint.save(tmp_path, sample(number))
    found = unwrap(checkpoint.latest(tmp_path, "7"))
    assert found.about.round == 3
    assert len(list((tmp_path / "7").iterdir())) == checkpoint.KEPT
    assert checkpoint.latest(tmp_path, "8") is None


def test_no_cut_and_no_altered_byte_of_content_is_taken(tmp_path: Path) -> None:
    data = checkpoint.encode(sample())
    for length in range(len(data)):
        with pytest.raises(MalformedRecord):
            checkpoint.decode(data[:length])
    for at in range(8, len(data)):
        altered = bytearray(data)
        altered[at] ^= 0x01
        try:
            found = checkpoint.decode(bytes(altered))
        except MalformedRecord:
            continue
        assert checkpoint.encode(found) == data  # a space in the header's padding


def test_a_broken_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        checkpoint.save(tmp_path, sample(number))
    newest = tmp_path / "7" / "round-0002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    found = unwrap(checkpoint.latest(tmp_path, "7"))
    assert found.about.round == 1
    assert "round-0002.safetensors is ignored" in caplog.text
    newest.with_name("round-0001.safetensors").rename(newest)  # of another round
    assert checkpoint.latest(tmp_path, "7") is None
    newest.write_bytes(checkpoint.encode(sample(2, run="8")))
    assert checkpoint.latest(tmp_path, "7") is None
