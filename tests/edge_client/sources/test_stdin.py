"""Readings and labels from outside: what can be read is, the rest is counted or named."""

import io
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.samples.labels import parse_label, parse_line
from edge_client.settings import EdgeSettings
from edge_client.sources.live import MALFORMED, LineReadings, Lines, open_source
from edge_client.sources.replay import Source
from streams.contract.errors import UsageError
from streams.kafka.settings import BrokerSettings
from tests.rig.made_up.tiny_task import task
from tidewheel import Reading


class Opened(NamedTuple):
    """A source of lines: its writer, and why lines were passed over."""

    source: Source
    writer: FileIO
    skipped: list[str]


readings = st.lists(
    st.tuples(
        st.integers(0, 2**50),
        st.lists(st.floats(allow_nan=False, width=32), min_size=2, max_size=2),
        st.none() | st.integers(0, 2),
    ),
    max_size=20,
)


def read(lines: list[str]) -> tuple[list[Reading], int]:
    skipped: list[str] = []
    found = list(LineReadings(task, lines, lambda reason, _: skipped.append(reason)))
    assert set(skipped) <= {MALFORMED}
    return found, len(skipped)


@given(readings, st.booleans())
def test_json_lines_come_back(
    given_: list[tuple[int, list[float], int | None]], named: bool
) -> None:
    lines = []
    for time_us, values, label in given_:
        fields = dict(zip(task.channels, values, strict=True)) if named else {"values": values}
        lines += [json.dumps({"time_us": time_us, **fields, "label": label}) + "\n", "\n"]
    assert read(lines) == ([Reading(*one) for one in given_], 0)


@given(readings)
def test_csv_comes_back(given_: list[tuple[int, list[float], int | None]]) -> None:
    lines = ["y,time_us,label,x\n"]
    for time_us, (x, y), label in given_:
        lines.append(f"{y!r},{time_us},{'' if label is None else label},{x!r}\n")
    assert read(lines) == ([Reading(*one) for one in given_], 0)


@given(st.lists(st.text() | st.from_type(dict).map(str) | st.floats().map(repr), max_size=10))
def test_whatever_else_comes_is_counted_and_passed_over(lines: list[str]) -> None:
    good = '{"time_us": 5, "values": [1, 2]}'
    found, skipped = read([good, *lines, good])
    assert found[0] == found[-1] == Reading(5, [1.0, 2.0])
    assert len(found) + skipped <= len(lines) + 2


@pytest.mark.parametrize(
    "line",
    [
        '{"time_us": 1, "values": [1]}',
        '{"time_us": 1, "values": [1, "a"]}',
        '{"time_us": -1, "values": [1, 2]}',
        '{"time_us": true, "values": [1, 2]}',
        '{"time_us": 1e300, "values": [1, 2]}',
        '{"time_us": Infinity, "values": [1, 2]}',
        '{"values": [1, 2]}',
        '{"time_us": 1, "x": 1}',
        '{"time_us": 1, "values": [1, 2], "label": "NaN"}',
        "[" * 100_000,
        "null",
    ],
)
def test_what_is_no_reading_is_not_made_one(line: str) -> None:
    good = '{"time_us": 5, "values": [1, 2]}'
    assert read([good, line]) == ([Reading(5, [1.0, 2.0])], 1)


def test_a_csv_without_its_columns_says_what_to_write() -> None:
    with pytest.raises(UsageError, match=r"with time_us, y: write time_us,x,y\[,label\]"):
        read(["x,z\n", "1,2\n"])


def test_waiting_for_a_line_ends_when_it_is_told_to() -> None:
    ends, stop = os.pipe(), threading.Event()
    with os.fdopen(ends[0]) as reader, os.fdopen(ends[1], "w") as writer:
        lines = iter(Lines(reader, stop))
        writer.write("one\n")
        writer.flush()
        assert next(lines) == "one\n"
        stop.set()
        assert list(lines) == []
        writer.close()
    whole = Lines(io.StringIO("a\nb"), threading.Event())
    assert list(whole) == ["a\n", "b"]
    assert list(whole) == []  # an end is an end


SAMPLES, HOP = task.segment.samples, task.segment.hop
HEADER = b"time_us,x,y\n"


def rows(first: int, count: int, form: str) -> bytes:
    """Readings at the task's rate; the second value is the reading's number."""
    text = '{{"time_us": {0}, "values": [1.0, {1}]}}\n' if form == "json" else "{0},1.0,{1}\n"
    return "".join(text.format(50_000 * n, n) for n in range(first, first + count)).encode()


@pytest.fixture
def standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Opened]:
    """A device's source on a pipe, and the pipe's other end."""
    ends = os.pipe()
    skipped: list[str] = []
    stop = threading.Event()
    with os.fdopen(ends[0]) as reader, os.fdopen(ends[1], "wb", buffering=0) as writer:
        monkeypatch.setattr("sys.stdin", reader)
        settings = EdgeSettings(
            task_ref="", device="d0", folder=tmp_path, broker=BrokerSettings(bootstrap="nowhere:1"),
            trusted=(), source="stdin",
        )  # fmt: skip
        source = open_source(
            task, settings, tmp_path, resume_after_us=None, stop=stop,
            skip=lambda reason, _: skipped.append(reason),
        )  # fmt: skip
        yield Opened(source, writer, skipped)
        stop.set()
        writer.close()
        for thread in threading.enumerate():
            if thread.name == "source":
                thread.join(10)


@pytest.mark.parametrize("form", ["json", "csv"])
def test_a_source_that_is_restarted_goes_on_with_the_next_line(
    standard_input: Opened, form: str
) -> None:
    writer = standard_input.writer
    writer.write((HEADER if form == "csv" else b"") + rows(0, SAMPLES, form))
    for restart in range(3):
        first = SAMPLES * restart
        cut = next(iter(standard_input.source))  # what took it has failed, and takes no more
        assert cut.segment[1].tolist() == list(range(first, first + SAMPLES))
        writer.write(rows(first + SAMPLES, SAMPLES, form))
    assert standard_input.skipped == []


def test_bytes_that_are_no_text_are_one_malformed_line(standard_input: Opened) -> None:
    standard_input.writer.write(rows(0, HOP, "json") + b"\xff\xfe{\n" + rows(HOP, HOP, "json"))
    cut = next(iter(standard_input.source))
    assert cut.segment[1].tolist() == list(range(SAMPLES))
    assert standard_input.skipped == [MALFORMED]


def test_a_label_is_a_name_an_index_or_values() -> None:
    assert parse_label(task, 1, 2, "middle").label == [1.0]
    assert parse_label(task, 1, 2, 2).label == parse_label(task, 1, 2, "2").label == [2.0]
    found = parse_line(task, 1, '{"from_us": 7, "label": "slow"}')
    assert (found.first_us, found.last_us, found.label) == (7, 7, [0.0])


@pytest.mark.parametrize(
    "value", ["quick", "3", "-1", "0.5", "", "0,1", "nan", None, [], {}, True, False, [1.0], [True]]
)
def test_what_is_no_label_of_the_task_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="is not a label of this task: slow, middle, fast"):
        parse_label(task, 0, 1, value)


@given(st.text() | st.from_type(dict).map(str))
def test_a_line_of_labels_is_read_or_refused_by_its_number(line: str) -> None:
    with pytest.raises(UsageError, match="line 7"):
        parse_line(task, 7, line)


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        ("2", "1", "a label from 2 to 1 us covers no time"),
        ("-5", "0", "-5 us is before 1970"),
        ("0", "1152921504606846976", "is after the year 3100"),
        ('"10"', "20", "from_us is '10', not a whole number of microseconds"),
        ("10", "20.5", "to_us is 20.5, not a whole number"),
        ("true", "20", "from_us is True, not a whole number"),
        ("10", "null", "to_us is None, not a whole number"),
    ],
)
def test_a_label_of_no_event_time_is_refused_by_its_line(first: str, last: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"line 7: .*{re.escape(said)}"):
        parse_line(task, 7, f'{{"from_us": {first}, "to_us": {last}, "label": 1}}')


def test_targets_are_a_value_each() -> None:
    about = replace(task, classes=(), targets=("a", "b"))
    assert parse_label(about, 1, 2, [1, 2.5]).label == parse_label(about, 1, 2, "1,2.5").label
    for value in ([1, True], [1], 1.0):
        with pytest.raises(UsageError, match="a value for each of a, b"):
            parse_label(about, 0, 1, value)
