"""What files may hold: every row is read once, and has its numbers or the reason why not."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.batch.jobs.answers import Answering, output_schema
from streams.batch.output_files import writing
from streams.batch.progress import Plan
from streams.batch.rows import Rows, as_segments, refuse_unlike_numbers
from streams.batch.sources.inputs import check_files, choose_columns, head_of, read_shard
from streams.batch.sources.plan import Cutter, hash_file
from streams.batch.specification import Columns, Named
from streams.contract.errors import UsageError
from streams.contract.task import Task
from tests.rig.made_up.models import tiny
from tests.streams.batch.support import WIDTH, asked, good_rows, rows_of, write_parquet

COLUMNS = Columns(segment=["segment"], per_channel=False, id="event", label="label", keep=["site"])
many = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def plan_of(path: Path, kind: Any, **limits: int) -> Plan:
    return Cutter(kind, lambda: None, **limits).plan([Named(name="in", path=str(path))])


def read(
    path: Path, kind: Any, plan: Plan, columns: Columns = COLUMNS, task: Task = tiny
) -> list[Rows]:
    """All rows of a planned file."""
    file = plan.files[0]
    return [part for shard in plan.shards for part in read_shard(task, kind, file, shard, columns)]


def values_of(rows: list[Rows]) -> list[tuple[int, list[str] | None]]:
    """Of each row its number, and its problem."""
    return [
        (int(part.numbers[i]), part.problems[i].code if i in part.problems else None)
        for part in rows
        for i in range(len(part))
    ]


def written(tmp_path: Path, rows: list[Rows], kind: Any, kept: pa.Field) -> list[dict[str, Any]]:
    """The rows as a job writes them, with a model that sums up."""

    def run(segments: np.ndarray) -> np.ndarray:
        return np.repeat(segments.sum(axis=(1, 2))[:, None], 3, axis=1)

    schema = pa.schema([*output_schema(tiny, COLUMNS), kept])
    answering = Answering(tiny, "1-00000000", run, None)
    texts = ["site"] if kept.type == pa.string() else []
    with writing(tmp_path / f"part-0.{kind}", kind, schema, texts) as write_rows:
        for part in rows:
            table, counts = answering.answer(part, "in", schema)
            assert counts.processed == len(part)
            write_rows(table)
    return rows_of(tmp_path)


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
numbers = st.lists(st.integers(-(10**400), 10**400) | st.floats(), min_size=WIDTH, max_size=WIDTH)
objects = st.fixed_dictionaries(
    {},
    optional={
        "segment": anything | numbers | st.just([0.5] * WIDTH),
        "event": anything | st.text(max_size=5),
        "label": anything | st.sampled_from(["slow", 1, 2.0, None]),
        "site": anything,
        "other": anything,
    },
)
lines = st.lists(
    objects.map(lambda found: json.dumps(found).encode())
    | objects.map(lambda found: json.dumps(found, ensure_ascii=False).encode(errors="replace"))
    | st.binary(max_size=30).map(lambda found: found.replace(b"\n", b" "))
    | st.sampled_from([b"", b" \t", b"[1]", b"{", b"\xff", b"[" * 600, b"x" * 2000, b"{}" * 500])
    | st.just(json.dumps(good_rows(1)[0], ensure_ascii=False).encode().replace(b" ", b"")),
    max_size=12,
)


@many
@given(lines, st.booleans(), st.integers(1, 3000), st.sampled_from(["parquet", "jsonl"]))
def test_every_line_is_one_row_wherever_the_file_is_cut(
    tmp_path_factory: pytest.TempPathFactory, found: list[bytes], ended: bool, cut: int, kind: Any
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    path = folder / "in.jsonl"
    path.write_bytes(b"\n".join(found) + (b"\n" if ended else b""))
    plan = plan_of(path, "jsonl", shard_bytes=cut)
    rows = read(path, "jsonl", plan)
    first = [line.removeprefix(b"\xef\xbb\xbf") for line in found[:1]]
    wanted = [line for line in [*first, *found[1:]] if line.strip()]
    problems = values_of(rows)
    assert [number for number, _ in problems] == list(range(len(wanted)))
    assert plan.total == len(wanted)
    assert plan.files[0].crc32c == hash_file(str(path), lambda: None)
    answers = written(folder, rows, kind, pa.field("site", pa.string()))
    assert [row["error"] for row in answers] == [code for _, code in problems]
    for row in answers:
        assert (row["outputs"] is None) == (row["error"] is not None)
        assert row["outputs"] is None or all(map(math.isfinite, row["outputs"]))


def test_a_byte_order_mark_and_carriage_returns_are_no_part_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    line = json.dumps(good_rows(1)[0]).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\r\n")
    plan = plan_of(path, "jsonl")
    rows = read(path, "jsonl", plan)
    assert values_of(rows) == [(0, None), (1, None)]


HEADER = b"event,segment,label,site\n"
GOOD = json.dumps([0.5] * WIDTH).encode()
CODES: list[tuple[str, bytes, str | None]] = [
    ("csv", b'a,"%b",slow,\xc3\xa9' % GOOD, None),
    ("csv", b'a,"%b",,' % GOOD, None),
    ("csv", b'a,"%b",flying,' % GOOD, "bad-label"),
    ("csv", b',"%b",slow,' % GOOD, "missing"),
    ("csv", b"a,,slow,", "null"),
    ("csv", b'a,"[1, 2]",slow,', "wrong-width"),
    ("csv", b"a,text,slow,", "not-numeric"),
    ("csv", b"a,b,c", "undecodable"),
    ("csv", b'a,"b"c,d,e', "undecodable"),
    ("csv", b"a,\xff,c,d", "undecodable"),
    ("csv", b'a,"never closed,c,d', "undecodable"),
    ("jsonl", b'{"event": "a"}', "missing"),
    ("jsonl", b'{"segment": []}', "missing"),
    ("jsonl", b'{"event": true, "segment": []}', "missing"),
    ("jsonl", b'{"event": "a", "segment": null}', "null"),
    ("jsonl", b'{"event": "a", "segment": [1, 2]}', "wrong-width"),
    ("jsonl", b'{"event": "a", "segment": "text"}', "not-numeric"),
    ("jsonl", b'{"event": "a", "segment": {"0": 1}}', "not-numeric"),
    ("jsonl", b'{"event": "\\ud800", "segment": []}', "undecodable"),
    ("jsonl", b"[" * 100_000, "undecodable"),
    ("jsonl", b"\xff", "undecodable"),
    ("jsonl", b"null", "undecodable"),
]


@pytest.mark.parametrize(("kind", "line", "code"), CODES)
def test_a_line_has_the_code_of_what_is_wrong_with_it(
    tmp_path: Path, kind: str, line: bytes, code: str | None
) -> None:
    path = tmp_path / f"in.{kind}"
    path.write_bytes((HEADER if kind == "csv" else b"") + line)
    assert values_of(read(path, kind, plan_of(path, kind)))[0] == (0, code)


KINDS = [pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.int64()]
lists = st.none() | st.lists(st.integers(-9, 9) | st.none(), max_size=2) | st.lists(
    st.integers(-9, 9) | st.sampled_from([None, math.nan, 1e300]), min_size=WIDTH, max_size=WIDTH
)  # fmt: skip


def code_of(segment: list[Any] | None, kind: pa.DataType) -> str | None:
    """What is wrong with a segment."""
    if segment is None:
        return "null"
    if len(segment) != WIDTH:
        return "wrong-width"
    if None in segment:
        return "null"
    return None if all(abs(float(x)) < 100 for x in segment) else "not-finite"


@many
@given(
    st.lists(lists, max_size=25),
    st.sampled_from(KINDS),
    st.sampled_from(["list", "large", "fixed"]),
    st.integers(1, 9),
    st.integers(1, 20),
    st.sampled_from(["parquet", "jsonl"]),
)
def test_every_row_of_a_table_has_its_numbers_or_its_problem_wherever_the_file_is_cut(
    tmp_path_factory: pytest.TempPathFactory,
    segments: list[list[Any] | None],
    kind: pa.DataType,
    shape: str,
    group: int,
    cut: int,
    to: Any,
) -> None:
    if not pa.types.is_floating(kind):
        segments = [s and [0 if isinstance(x, float) else x for x in s] for s in segments]
    if shape == "fixed":
        segments = [s if s is None or len(s) == WIDTH else None for s in segments]
    of = {"list": pa.list_(kind), "large": pa.large_list(kind), "fixed": pa.list_(kind, WIDTH)}
    folder = tmp_path_factory.mktemp("rows")
    path, n = folder / "in.parquet", len(segments)
    arrays = [pa.array(range(n), pa.int64()), _array(segments, of[shape]), pa.nulls(n, pa.string())]
    names = ["event", "segment", "label"]
    table = pa.table([*arrays, pa.array([float("nan")] * n, pa.float64())], [*names, "site"])
    pq.write_table(table, path, row_group_size=group)
    check_files(tiny, "parquet", [Named(name="in", path=str(path))], COLUMNS)
    plan = plan_of(path, "parquet", shard_rows=cut)
    rows = read(path, "parquet", plan)
    assert values_of(rows) == [(i, code_of(s, kind)) for i, s in enumerate(segments)]
    assert plan.total == n
    assert all(shard.rows <= max(cut, group) for shard in plan.shards)
    answers = written(folder, rows, to, table.schema.field("site"))
    assert [row["id"] for row in answers] == [str(i) for i in range(n)]
    for segment, row in zip(segments, answers, strict=True):
        if row["error"] is None:
            assert row["outputs"][0] == pytest.approx(sum(segment or []), abs=1e-3)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if kind.value_type != pa.float16():
        return pa.array(values, kind)
    halves = [
        v and [None if x is None else np.float16(math.inf if x > 100 else x) for x in v]
        for v in values
    ]
    return pa.array(halves, kind)


@many
@given(st.integers(0, 6000))
def test_a_table_that_is_cut_off_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, end: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "cut"
    whole = write_parquet(folder / "whole.parquet", good_rows(12), 5)
    data, path = whole.read_bytes(), folder / "in.parquet"
    path.write_bytes(data[: min(end, len(data) - 1)])
    with pytest.raises(UsageError, match=r"in cannot be read as Parquet"):
        check_files(tiny, "parquet", [Named(name="in", path=str(path))], COLUMNS)


def test_rows_of_one_sample_are_one_column_a_channel(tmp_path: Path) -> None:
    from dataclasses import replace

    from tidewheel import Segment

    flat = replace(tiny, segment=Segment(samples=1, hop=1))
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"y": [1, None], "x": [0.5, 2.5]}), path)
    settings = asked(tmp_path, path, keep=[], id=None, label_column=None)
    head = head_of("parquet", Named(name="in", path=str(path)))
    columns = choose_columns(flat, "parquet", head, settings)
    assert (columns.segment, columns.per_channel) == (["x", "y"], True)
    (rows,) = read(path, "parquet", plan_of(path, "parquet"), columns, flat)
    assert rows.segments[0].tolist() == [[0.5], [1.0]]
    assert rows.problems[1].code == "null"


def test_a_signalling_nan_is_a_row_with_a_problem_and_no_warning() -> None:
    segment = np.zeros((1, tiny.segment_shape[0] * tiny.segment_shape[1]))
    segment[0, 3] = np.array([0x7FF0_0000_0000_0001], np.uint64).view(np.float64)[0]
    rows = Rows(np.arange(1), as_segments(segment, tiny))
    refuse_unlike_numbers(rows)
    assert rows.problems[0].code == "not-finite"
