"""Inputs of every format, from wherever they are, and which of their rows are scored."""

import csv
import io
import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from streams.batch.sources.selection import moment_us
from streams.batch.sources.tables import refuse_missing
from streams.batch.specification import Columns
from streams.contract.errors import UsageError
from tests.rig.made_up.models import tiny
from tests.streams.batch.support import (
    SCHEMA,
    WIDTH,
    WRITE,
    good_rows,
    submitted,
    write_bedrock,
    write_csv,
    write_delta,
    write_lines,
    write_parquet,
)
from tests.streams.batch.test_rows import many, plan_of, read, values_of

CSV = Columns(segment=["segment"], per_channel=False, id="event", label="label", keep=["site"])
BLANK = b" \t\v\f"
GOOD = json.dumps([0.5] * WIDTH)

# --- CSV -----------------------------------------------------------------------------------------

cells = st.text(max_size=8) | st.sampled_from(
    ["", '"', "a,b", "x\ny", "\r", '""', "1e400", "1_0", "nan", "[1]", "[" * 200, GOOD, "é" * 9]
)
records = st.lists(
    st.lists(cells, min_size=1, max_size=6)
    | st.tuples(cells, st.just(GOOD), cells, cells).map(list),
    max_size=8,
)


@many
@given(records, st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.integers(1, 900), st.data())
def test_every_csv_record_is_one_row_wherever_the_file_is_cut(
    tmp_path_factory: pytest.TempPathFactory,
    found: list[list[str]],
    quoting: Any,
    cut: int,
    data: st.DataObject,
) -> None:
    gone = "\x00" if quoting == csv.QUOTE_ALL else "\x00\r"  # csv writes a bare \r as it is
    found = [[cell.translate(dict.fromkeys(map(ord, gone))) for cell in row] for row in found]
    text = io.StringIO()
    writer = csv.writer(
        text, quoting=quoting, lineterminator=data.draw(st.sampled_from(["\n", "\r\n"]))
    )
    writer.writerow(["event", "segment", "label", "site"])
    writer.writerows(found)
    path = tmp_path_factory.mktemp("csv") / "in.csv"
    raw = text.getvalue().encode(errors="surrogatepass")
    path.write_bytes(raw)
    plan = plan_of(path, "csv", shard_bytes=cut)
    whole = plan_of(path, "csv")
    rows = read(path, "csv", plan, CSV)
    again = read(path, "csv", whole, CSV)
    assert values_of(rows) == values_of(again)
    assert [number for number, _ in values_of(rows)] == list(range(plan.total))
    kept = [value for part in rows for value in part.kept["site"].to_pylist()]
    all_quoted = quoting == csv.QUOTE_ALL
    wanted = [row for row in found if len(row) > 1 or all_quoted or row[0].encode().strip(BLANK)]
    wanted = [row for row in found if row in wanted or row == [""]]  # csv writes it as quotes
    codes = [code for _, code in values_of(rows)]
    for record, code, site in zip(wanted, codes, kept, strict=True):
        assert len(record) == 4 or code == "undecodable"
        assert code is not None or (record[1] == GOOD and (record[3] or None) == site)


def test_a_number_a_column_and_what_is_dropped(tmp_path: Path) -> None:
    names = [f"{c}{i}" for c in "yx" for i in range(WIDTH // 2)]
    rows = good_rows(3)
    flat = [
        {"who": row["event"], **dict(zip(names, row["segment"], strict=True)), "note": "n"}
        for row in rows
    ]
    flat[1][names[5]] = "far"
    path = write_csv(tmp_path / "a.csv", flat)
    job = submitted(tmp_path, path, id="who", drop=["note"], label_column=None, keep=[])
    assert job.run().errors == {"not-numeric": 1}
    other = submitted(
        tmp_path, path, to="b", id="who", columns=names, label_column=None, keep=["note"]
    )
    assert other.run().succeeded == 2
    assert [row["outputs"] for row in other.rows()] == [row["outputs"] for row in job.rows()]
    same = submitted(tmp_path, write_lines(tmp_path / "a.jsonl", rows), to="c")
    same.run()
    assert same.rows()[0]["outputs"] == job.rows()[0]["outputs"]
    with pytest.raises(UsageError, match="41 columns"):
        submitted(tmp_path, path, to="d", id="who", drop=["absent"], label_column=None, keep=[])
    with pytest.raises(UsageError, match="--drop and --columns"):
        submitted(tmp_path, path, to="d", drop=["note"], columns=["a"])


def test_a_header_that_is_none_is_refused(tmp_path: Path) -> None:
    for text in ("a,a\n1,2\n", "event,,segment\n"):
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(UsageError, match=r"a\.csv has no header"):
            submitted(tmp_path, tmp_path / "a.csv")


# --- Bedrock, Delta, streams ----------------------------------------------------------------------


def test_lines_as_bedrock_has_them_are_found_by_their_first_line(tmp_path: Path) -> None:
    rows = good_rows(30)
    path = write_bedrock(tmp_path / "a.jsonl", rows)
    with path.open("ab") as file:
        file.write(b'{"recordId": "last", "modelInput": 7}\n')
    job = submitted(tmp_path, path, id=None)
    assert job.run().errors == {"missing": 1}
    plain = submitted(tmp_path, write_lines(tmp_path / "b.jsonl", rows), to="plain")
    plain.run()
    for one, other in zip(job.rows(), plain.rows(), strict=False):
        assert {**one, "file": ""} == {**other, "file": ""}
    assert job.rows()[-1]["id"] is None


def test_a_delta_table_is_read_at_its_newest_version_with_its_partition_columns(
    tmp_path: Path,
) -> None:
    table = write_delta(tmp_path / "lake", good_rows(40))
    write_deltalake(str(table), DeltaTable(table).to_pyarrow_table().slice(0, 0), mode="append")
    job = submitted(tmp_path, table, keep=["site", "day"], where="day = 1")
    write_deltalake(str(table), DeltaTable(table).to_pyarrow_table(), mode="append")  # later
    found = job.run()
    assert (found.total, found.excluded, found.succeeded) == (40, 20, 20)
    rows = job.rows()
    assert {row["day"] for row in rows} == {1}
    assert sorted(row["id"] for row in rows) == sorted(row["event"] for row in good_rows(40)[20:])


def test_partition_columns_of_a_delta_table_keep_their_types(tmp_path: Path) -> None:
    row = good_rows(1)[0]
    moment = datetime(2026, 3, 1, 8, 0, 0, 5, tzinfo=UTC)
    kinds = {"t": (moment, pa.timestamp("us", "UTC")), "d": (date(2024, 2, 29), pa.date32()),
             "s": ("é/x y", pa.string()),
             "b": (True, pa.bool_()), "n": (None, pa.int64())}  # fmt: skip
    more = {name: pa.array([value], kind) for name, (value, kind) in kinds.items()}
    table = pa.table({**pa.Table.from_pylist([row], SCHEMA).to_pydict(), **more})
    write_deltalake(str(tmp_path / "lake"), table, partition_by=list(kinds))
    job = submitted(tmp_path, tmp_path / "lake", keep=list(kinds))
    assert job.run().succeeded == 1
    found = job.rows()[0]
    assert {name: found[name] for name in kinds} == {n: v for n, (v, _) in kinds.items()}


def test_what_is_no_delta_table_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "lake" / "_delta_log").mkdir(parents=True)
    with pytest.raises(UsageError, match="lake cannot be read as a Delta table"):
        submitted(tmp_path, tmp_path / "lake")


# --- selection ------------------------------------------------------------------------------------


def times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "at": f"2026-03-{1 + i:02}T08:00:00Z"} for i, row in enumerate(rows)]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_rows_outside_a_range_of_event_time_are_excluded_and_counted(
    tmp_path: Path, kind: str
) -> None:
    rows = times(good_rows(10))
    rows[4]["at"] = None
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        moments = [row["at"] and datetime.fromisoformat(row["at"]) for row in rows]
        table = pa.Table.from_pylist(rows, SCHEMA)
        pq.write_table(
            table.append_column("at", pa.array(moments, pa.timestamp("ns", "UTC"))), path
        )
    else:
        WRITE[kind](path, rows)
    job = submitted(tmp_path, path, time="at", start="2026-03-03T08:00Z", until="2026-03-07T08:00Z")
    found = job.run()
    assert (found.total, found.excluded, found.succeeded) == (10, 6, 3)
    assert found.errors == {"bad-time": 1}
    assert [row["row"] for row in job.rows()] == [2, 3, 4, 5]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "delta", "bedrock"])
def test_an_expression_selects_the_same_rows_of_every_format(tmp_path: Path, kind: str) -> None:
    rows = good_rows(60)
    path = WRITE[kind](tmp_path / ("a.jsonl" if kind == "bedrock" else f"a.{kind}"), rows)
    job = submitted(tmp_path, path, where="site >= 10 AND label <> 'slow' OR event = '0-3'")
    found = job.run()
    wanted = [
        row["event"]
        for row in rows
        if (row["site"] >= 10 and row["label"] != "slow") or row["event"] == "0-3"
    ]
    assert sorted(row["id"] for row in job.rows()) == sorted(wanted)
    assert found.total == 60 == found.excluded + found.succeeded


def test_a_row_on_which_the_expression_fails_is_an_error_and_a_null_excludes(
    tmp_path: Path,
) -> None:
    rows = [
        {**row, "note": note}
        for row, note in zip(good_rows(4), ["3", "x", None, "-3"], strict=True)
    ]
    job = submitted(tmp_path, write_lines(tmp_path / "a.jsonl", rows), where="note::INT > 0")
    found = job.run()
    assert (found.excluded, found.errors, found.succeeded) == (2, {"bad-where": 1}, 1)
    assert [(row["row"], row["error"]) for row in job.rows()] == [(0, None), (1, "bad-where")]


def test_a_value_that_does_not_fit_its_column_is_an_error_of_its_row(tmp_path: Path) -> None:
    rows = good_rows(120)
    rows[110]["site"] = "north"
    for kind in ("csv", "jsonl"):
        path = WRITE[kind](tmp_path / f"a.{kind}", rows)
        found = submitted(tmp_path, path, to=kind, where="site < 1000").run()
        assert (found.excluded, found.errors) == (0, {"bad-where": 1})


@many
@given(
    st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)), st.sampled_from(["Z", "+02:00", ""])
)
def test_event_times_are_exact(moment: datetime, offset: str) -> None:
    text = moment.isoformat() + offset
    zone = moment.replace(tzinfo=UTC)
    shift = 7_200_000_000 if offset == "+02:00" else 0
    since = zone - datetime(1970, 1, 1, tzinfo=UTC)
    exact = (since.days * 86_400 + since.seconds) * 10**6 + since.microseconds
    assert moment_us(text) == exact - shift
    assert CSV.replace(from_us=exact).from_us == exact
    assert tiny.name


# --- URLs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "delta"])
def test_objects_of_s3_are_read_as_files(
    tmp_path: Path, s3_environ: None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import fsspec

    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")  # deltalake asks for it
    local = WRITE[kind](tmp_path / "x" / f"a.{kind}", good_rows(40))
    files = fsspec.filesystem("s3")
    files.put(str(local), f"models/lake/a.{kind}", recursive=True)
    named = f"s3://models/lake/a.{kind}" if kind == "delta" else "s3://models/lake"
    job = submitted(tmp_path, named)
    assert job.run().succeeded == 40
    here = submitted(tmp_path, local, to="here")
    here.run()
    assert [row["outputs"] for row in job.rows()] == [row["outputs"] for row in here.rows()]
    if kind == "parquet":
        globbed = submitted(tmp_path, "s3://models/l*/*.parquet", to="globbed")
        assert globbed.run().succeeded == 40


def test_an_object_that_changes_is_refused_by_name_and_one_that_is_missing_too(
    tmp_path: Path, s3_environ: None
) -> None:
    import fsspec

    files = fsspec.filesystem("s3")
    local = write_parquet(tmp_path / "a.parquet", good_rows(60))
    files.put(str(local), "models/a.parquet")
    job = submitted(tmp_path, "s3://models/a.parquet")

    def change(point: str) -> None:
        if point == "score-step-5":
            files.put(str(write_parquet(local, good_rows(60, 1))), "models/a.parquet")

    found = job.run(reached=change)
    assert found.state == "Failed"
    assert "s3://models/a.parquet was changed" in found.reason
    with pytest.raises(UsageError, match=r"s3://models/a\.parquet has changed"):
        job.run()
    with pytest.raises(UsageError, match="no such file"):
        submitted(tmp_path, "s3://models/none/", to="none")
    with pytest.raises(UsageError, match="s3://nowhere"):
        submitted(tmp_path, "s3://nowhere/a.parquet", to="none")


def test_all_columns_that_a_file_does_not_have_once_are_named() -> None:
    with pytest.raises(UsageError, match=r"^f has no column 'a', 'b'; it has b, x, b$"):
        refuse_missing("f", ["a", "x", "b"], ["b", "x", "b"])
