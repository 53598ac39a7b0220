"""A file is replaced whole, by however many writers at a time."""

from pathlib import Path

from streams.runtime.disk import replacing


def test_two_that_write_one_file_at_a_time_leave_that_of_the_last(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as first:
        first.write(b"first")
        with replacing(path) as second:
            second.write(b"second, which is longer")
        assert path.read_bytes() == b"second, which is longer"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]
