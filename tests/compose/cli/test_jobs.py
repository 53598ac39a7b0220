"""`tidewheel score` and `tidewheel jobs` as real processes: killed at each numbered step, stopped,
and called wrongly."""

import json
import signal
import time
import uuid
from itertools import chain
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import safetensors.numpy

from compose.launcher.state_dir import StateDir
from federation.registry.registry import Registry
from streams.contract.artifact import key_id
from streams.learning.input_adapter import InputAdapter
from streams.learning.learning import predict
from streams.runtime.files import write_atomic
from streams.runtime.trust import create_key
from tests.compose.cli.test_cli import PROGRAM, TINY, environ_in, fails, tidewheel
from tests.rig.made_up.models import artifact, plain, tiny
from tests.rig.processes.running import start
from tests.rig.unwrap import unwrap
from tests.streams.batch.support import good_rows, rows_of, write_parquet
from tests.streams.batch.test_readings import recording, table_of, write_readings

FILES, ROWS, MANY = 4, 30, 120


def words(lake: Path, kind: str = "parquet", to: str = "out") -> list[str]:
    """A whole command."""
    named = ["--model", str(lake / "model.twa"), "--trust", str(lake / "k.pub")]
    columns = ["--id", "event", "--label-column", "label", "--keep", "site"]
    return ["score", TINY, str(lake / kind), "--to", to, *named, *columns]


def expected(files: int = FILES, rows: int = ROWS) -> list[str]:
    return [row["event"] for n in range(files) for row in good_rows(rows, n)]


@pytest.mark.usefixtures("executed")
@pytest.mark.parametrize("point", ["score-step-1:1", "score-step-4:2", "score-step-8:1"])
def test_a_job_that_is_killed_loses_and_doubles_nothing(
    tmp_path: Path, lake: Path, point: str
) -> None:
    """Real processes, two of which score; tests/streams/batch has every step and every sink."""
    command = [*words(lake), "--processes", "2"]
    killed = tidewheel(*command, folder=tmp_path, TIDEWHEEL_FAILPOINT=point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    shown = tidewheel("jobs", "list", "out.job", "--json", folder=tmp_path)
    assert json.loads(shown.stdout)["running"] is False
    done = tidewheel("jobs", "resume", "out.job", "--json", "--processes", "2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out")
    assert [row["id"] for row in rows] == expected()
    assert json.loads(done.stdout)["errors"] == {"wrong-width": FILES}
    assert list(tmp_path.rglob(".*.tmp")) == []


def test_a_process_that_dies_before_its_job_exists_leaves_nothing_in_the_way(
    tmp_path: Path, lake: Path
) -> None:
    """The folder, its lock and a part of the model are there, the specification is not."""
    (tmp_path / "out.job").mkdir()
    (tmp_path / "out.job" / "lock").write_text("1")
    write_atomic(tmp_path / "out.job" / "model.twa", b"half")
    assert tidewheel(*words(lake), folder=tmp_path).returncode == 0
    assert [row["id"] for row in rows_of(tmp_path / "out")] == expected()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_between_shards_and_says_how_to_resume(
    tmp_path: Path, lake: Path, number: int
) -> None:
    for n in range(200):
        write_parquet(tmp_path / "in" / f"{n:03}.parquet", good_rows(5, n))
    out, err = tmp_path / "stdout", tmp_path / "stderr"
    argv = [PROGRAM, *words(lake)]
    argv[3] = "in"
    process = start(argv, out, environ_in(tmp_path, {}), err=err, cwd=tmp_path, session=False)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("part-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    assert process.wait(60) == 130, err.read_text()
    assert "tidewheel jobs resume" in err.read_text()
    assert out.read_text().startswith("Stopped: ")
    assert 0 < len(rows_of(tmp_path / "out")) < 1000
    assert tidewheel("jobs", "resume", "out.job", folder=tmp_path).returncode == 0
    wanted = [row["event"] for row in chain.from_iterable(good_rows(5, n) for n in range(200))]
    assert [row["id"] for row in rows_of(tmp_path / "out")] == wanted


def test_a_job_with_too_many_errors_exits_with_1_and_goes_on_when_more_are_allowed(
    tmp_path: Path, lake: Path
) -> None:
    done = tidewheel(*words(lake), "--max-errors", "1", folder=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "--max-errors allows 1" in done.stderr
    shown = tidewheel("jobs", "list", "out.job", folder=tmp_path)
    assert shown.stdout.startswith("Failed: ")
    resume = ["jobs", "resume", "out.job"]
    assert tidewheel(*resume, folder=tmp_path).returncode == 1
    fails(tidewheel(*resume, "--max-errors", "x", folder=tmp_path), 2, "--max-errors x")
    done = tidewheel(*resume, "--max-errors", "4", folder=tmp_path)
    assert done.returncode == 0
    assert [row["id"] for row in rows_of(tmp_path / "out")] == expected()
    before = json.loads((tmp_path / "out" / "_manifest.json").read_text())["attempts"]
    again = tidewheel(*resume, "--failed", "--max-errors", "4", "--json", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert (found["state"], found["attempts"]) == ("Completed", before + FILES)
    assert [row["id"] for row in rows_of(tmp_path / "out")] == expected()


def test_a_job_without_rows_says_so_in_its_last_line(tmp_path: Path, lake: Path) -> None:
    (tmp_path / "head.csv").write_text("event,segment,label,site\n")
    command = words(lake)
    command[2] = "head.csv"
    done = tidewheel(*command, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "no rows: the input has none"
    command = [*words(lake, to="other"), "--where", "site < 0"]
    done = tidewheel(*command, folder=tmp_path)
    assert done.stdout.splitlines()[-1] == "no rows: all 120 are excluded"


def test_show_says_what_a_complete_job_has_done(tmp_path: Path, lake: Path) -> None:
    done = tidewheel(*words(lake), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    shown = tidewheel("jobs", "list", "out.job", folder=tmp_path)
    for text in ("Completed: 4 of 4 shards", "120 of 120 rows", "4 errors (wrong-width 4)",
                 "3.parquet: 30 rows"):  # fmt: skip
        assert text in shown.stdout
    assert f"report {tmp_path}/out.job/report.md" in done.stdout
    assert "wrong-width" in (tmp_path / "out.job" / "report.md").read_text()
    assert tidewheel("jobs", "resume", "out.job", folder=tmp_path).returncode == 0


def wrong_calls(lake: Path) -> dict[str, tuple[list[Any], str]]:
    base = words(lake)
    return {
        "no such file": ([*base[:2], "none", *base[3:]], "no such file"),
        "no such artifact": ([*base, "--model", "none.twa"], "there is no such file"),
        "no artifact": ([*base, "--model", str(lake / "parquet" / "0.parquet")], "--model"),
        "nothing prepared": ([*base[:5]], "run tidewheel prepare"),
        "no task": ([base[0], "none.py:task", *base[2:]], "there is no file none.py"),
        "no time": ([*base, "--timeout", "soon"], "--timeout soon: write a time"),
        "no kind of row": ([*base, "--as", "words"], "--as words"),
    }


@pytest.mark.parametrize("name", sorted(wrong_calls(Path())))
def test_a_wrong_call_is_one_line_with_exit_code_2_and_leaves_no_job(
    tmp_path: Path, lake: Path, name: str
) -> None:
    command, text = wrong_calls(lake)[name]
    fails(tidewheel(*command, folder=tmp_path), 2, text)
    assert not list(tmp_path.glob("out*"))


def test_the_served_version_is_the_default_and_every_stored_one_can_be_named(
    tmp_path: Path, lake: Path
) -> None:
    layout = StateDir(tmp_path / ".tidewheel")
    key = create_key(layout.signing_key)
    registry = Registry(layout.registry, "tiny", 1, [key.public_key()])
    base = [*words(lake)[:3], "--to"]
    fails(tidewheel(*base, "out", folder=tmp_path), 2, "no model is served")
    first, second = (registry.add(artifact(key, plain(n), n)).model for n in (1, 2))
    registry.serve(second, key, "a test")
    for name, model in (("served", second), (first, first)):
        done = tidewheel(*base, name, "--model", name, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert {row["model"] for row in rows_of(tmp_path / name)} == {model}
    for name in ("7-00000000", "none"):
        wrong = tidewheel(*base, "other", "--model", name, folder=tmp_path)
        fails(wrong, 2, f"--model {name}", "no model")


def test_after_a_rotation_a_job_needs_the_new_key_alone(tmp_path: Path, lake: Path) -> None:
    """As on a machine that has the registry's place and signing.pub, and nothing else."""
    layout = StateDir(tmp_path / "server")
    key = create_key(layout.signing_key)
    registry = Registry(layout.registry, "tiny", 1, [key.public_key()])
    registry.serve(registry.add(artifact(key, plain(1))).model, key, "a test")
    where = ["--state", str(layout.state)]
    first = key_id(key.public_key())
    assert tidewheel("keys", "trust", *where, folder=tmp_path).returncode == 0
    [made] = [path.stem for path in layout.keys.glob("*.pem") if path.stem != "signing"]
    assert tidewheel("keys", "use", made, *where, folder=tmp_path).returncode == 0
    command = [*words(lake)[:3], "--registry", str(layout.registry)]
    trust = ["--trust", str(layout.public_key), "--to"]
    done = tidewheel(*command, *trust, "between", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert tidewheel("keys", "revoke", first, *where, folder=tmp_path).returncode == 0
    done = tidewheel(*command, *trust, "after", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    served = unwrap(registry.serving()).model
    assert {row["model"] for row in rows_of(tmp_path / "after")} == {served}
    wrong = tidewheel(*command, "--trust", str(lake / "k.pub"), "--to", "no", folder=tmp_path)
    fails(wrong, 2, "untrusted-key", "--trust")


def test_the_teacher_and_a_challenger_are_named_as_models(tmp_path: Path, lake: Path) -> None:
    layout = StateDir(tmp_path / ".tidewheel")
    key = create_key(layout.signing_key)
    registry = Registry(layout.registry, "tiny", 1, [key.public_key()])
    base = [*words(lake)[:3], "--to"]
    first = registry.add(artifact(key, plain(1), 1)).model
    assert tiny.build_teacher is not None
    made = artifact(key, tiny.build_teacher(), kind="teacher", graph=b"-", probe=b"-")
    taught = registry.add_teacher(made).model
    write_readings(tmp_path / "readings.parquet", table_of({"d0": recording("d0", 300)}))
    command = ["score", TINY, "readings.parquet", "--as", "readings", "--to"]
    done = tidewheel(*command, "taught", "--model", "teacher", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {row["model"] for row in rows_of(tmp_path / "taught")} == {taught}
    personal = safetensors.numpy.save(
        {name: value.numpy() for name, value in plain(5).state_dict().items()},
        {"base": first, "model": f"{first}.p2", "state": "{}"},
    )
    turned = InputAdapter(np.array([[0, 2], [-1, 0]], np.float32), np.ones(2, np.float32))
    adapter = safetensors.numpy.save(
        turned.tensors(), {"base": first, "model": f"{first}.a3", "state": "{}"}
    )
    models = {"p2": (plain(5), personal), "a3": (plain(1), adapter)}
    for name, (model, file) in models.items():
        (tmp_path / "challenger.safetensors").write_bytes(file)
        done = tidewheel(*base, name, "--model", "challenger.safetensors", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        rows = rows_of(tmp_path / name)
        assert {row["model"] for row in rows} == {f"{first}.{name}"}
        sent = [row["segment"] for n in range(FILES) for row in good_rows(ROWS, n)]
        segments = np.array(sent, np.float32).reshape(-1, 2, 20)
        answers = predict(model, turned.apply(segments) if name == "a3" else segments)
        answered = [(row["outputs"], answer) for row, answer in zip(rows, answers, strict=True)
                    if row["outputs"] is not None]  # fmt: skip
        assert len(answered) == FILES * (ROWS - 1)
        np.testing.assert_allclose(*zip(*answered, strict=True), rtol=1e-4, atol=1e-4)
    (tmp_path / "challenger.safetensors").write_bytes(b"x")
    wrong = tidewheel(*base, "other", "--model", "challenger.safetensors", folder=tmp_path)
    fails(wrong, 2, "not the file of a challenger")


def test_a_job_is_not_submitted_twice(tmp_path: Path, lake: Path) -> None:
    assert tidewheel(*words(lake), folder=tmp_path).returncode == 0
    fails(tidewheel(*words(lake), folder=tmp_path), 2, "tidewheel jobs resume")
    fails(tidewheel(*words(lake), "--job", "other", folder=tmp_path), 2, "the output out exists")
    fails(tidewheel("jobs", "list", "other", folder=tmp_path), 2, "is no job")
    fails(tidewheel("jobs", "resume", "other", folder=tmp_path), 2, "is no job")


# --- outputs -------------------------------------------------------------------------------------


def test_bedrocks_output_is_put_into_a_bucket(tmp_path: Path, lake: Path, s3_environ: None) -> None:
    url = f"s3://models/{uuid.uuid4().hex}"
    command = words(lake, "bedrock", url)[:9]
    command += ["--id", "event", "--output-format", "bedrock", "--job", "b.job"]
    done = tidewheel(*command, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    store = fsspec.filesystem("s3")
    lines = [
        json.loads(line)
        for n in range(FILES)
        for line in store.cat(f"{url}/{n}.jsonl.out").splitlines()
    ]
    assert [line["recordId"] for line in lines] == expected()
    assert json.loads(store.cat(f"{url}/manifest.json.out"))["totalRecordCount"] == FILES * ROWS


def test_a_broken_database_is_one_line_and_leaves_no_job(tmp_path: Path, lake: Path) -> None:
    (tmp_path / "out.sqlite").write_text("no database at all, but more than a few bytes of text")
    fails(tidewheel(*words(lake, to="out.sqlite"), folder=tmp_path), 1, "out.sqlite")
    assert not (tmp_path / "out.sqlite.job").exists()
