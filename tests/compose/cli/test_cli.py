"""The command line as a user meets it: help, and errors of one line that say what to do."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import click
import pytest
import typer
import typer.main

from compose.cli.main import app, whole
from streams.runtime.trust import create_key
from tests.rig.processes.forks import executed

ROOT = Path(__file__).parents[3]
TINY = f"{ROOT / 'tests' / 'rig' / 'made_up' / 'tiny_task.py'}:task"
PROGRAM = Path(sys.executable).parent / "tidewheel"


def environ_in(folder: Path, env: Mapping[str, str]) -> dict[str, str]:
    """With none of our settings but `env`."""
    known = {k: v for k, v in os.environ.items() if not k.startswith("TIDEWHEEL_")}
    return {**known, "COLUMNS": "120", "TIDEWHEEL_CACHE": str(folder / "cache"), **env}


def tidewheel(
    *words: str | Path, folder: Path, given: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in `folder` with the input `given`, in a process that is forked from one that
    has imported it."""
    return subprocess.run(
        [PROGRAM, *map(str, words)], cwd=folder, env=environ_in(folder, env), input=given,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def together(
    *commands: list[str], folder: Path, **env: str
) -> list[subprocess.CompletedProcess[str]]:
    """Run commands at the same time: each waits for something that is not there."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda words: tidewheel(*words, folder=folder, **env), commands))


def installed(*words: str | Path, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The same as users have it: the installed program, from its start."""
    with executed():
        return tidewheel(*words, folder=folder, **env)


def fails(done: subprocess.CompletedProcess[str], code: int, *texts: str) -> None:
    """One line on stderr that begins with our name, and the exit code that is documented."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("tidewheel: ")
    for text in texts:
        assert text in lines[0]
    assert done.stdout == ""


def port_without_listener() -> int:
    with socket.socket() as probed:
        probed.bind(("127.0.0.1", 0))
        return int(probed.getsockname()[1])


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("", ["up", "prepare", "edge", "worker", "controller", "node", "status", "query"]),
        ("edge run", ["--device", "--state", "--kafka", "--model", "--trust", "--passes"]),
        ("keys trust", ["FILE.pub", "--state", "--registry", "--reason"]),
    ],
)
def test_help_names_every_option(tmp_path: Path, command: str, options: list[str]) -> None:
    """Those of all commands are compared with docs/reference in tests/docs."""
    done = tidewheel(*command.split(), "--help", folder=tmp_path)
    assert done.returncode == 0
    assert [option for option in options if option not in done.stdout] == []
    assert "\\[" not in done.stdout
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("width", [60, 80, 120, 400])
def test_the_table_of_commands_says_what_the_commands_say(width: int) -> None:
    """Help is printed from the table, without importing the commands."""
    listed, imported = (
        root.get_help(click.Context(root, info_name="tidewheel", terminal_width=width))
        for root in (typer.main.get_group(app), whole())
    )
    assert listed == imported


def test_a_misspelt_command_is_refused_and_the_nearest_one_named(tmp_path: Path) -> None:
    done = tidewheel("statsu", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean 'status'?" in done.stderr


EDGE, NODES = ["edge", "run", TINY, "--device"], ["node", "list"]
SUPERLINK = "--superlink HOST:PORT"


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["up", f"{TINY}s"], ["has no attribute 'tasks'"]),  # others in tests/streams/contract
        (["up", TINY, "--strategy", "sgd"], ["--strategy sgd", "must be one of fedavg, fedprox"]),
        (
            ["controller", TINY, "--strategy", "fedprox"],
            ["--strategy fedprox", "needs training.proximal above 0"],
        ),
        *((["up", TINY, "--devices", n], [f"--devices {n}", "1 to 6"]) for n in ("0", "7", "-1")),
        *(([*EDGE, name], ["--device", "letters"]) for name in ("", "a b", "../d0", "x" * 64)),
        (
            ["prepare", TINY, "--state", "/sys/tidewheel"],
            ["/sys/tidewheel", "name a place that you may write to"],
        ),
        (["prepare", TINY, "--registry", "/dev/null/x"], ["/dev/null/x", "Not a directory"]),
        *(
            (
                [command, TINY, "--state", "nowhere"],
                ["the state folder nowhere does not exist: check --state"],
            )
            for command in ("status", "timeline")  # no broker is blamed
        ),
        (["controller", TINY], ["signing.pub"]),
        ([*EDGE, "d0", "--superlink", "h:1"], ["--superlink h:1", "pass --superlink-ca"]),
        (["controller", TINY, "--superlink", "nowhere"], ["--superlink nowhere", "HOST:PORT"]),
        (NODES, [".tidewheel", SUPERLINK]),
        (["node", "add", "a/b"], [SUPERLINK]),
        (
            [*NODES, "--superlink", "127.0.0.1:1", "--superlink-ca", "none.pem"],
            ["none.pem", "no CA certificate"],
        ),
        ([*NODES, "--superlink-ca", "ca.pem"], ["--superlink-ca", SUPERLINK]),
        (["query", "select 1"], ["is not a store"]),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value[:4]).replace(TINY, "T"),
)
def test_what_cannot_work_is_named_in_one_line_and_nothing_is_left(
    tmp_path: Path, words: list[str], texts: list[str]
) -> None:
    fails(tidewheel(*words, folder=tmp_path), 2, *texts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("build_model=lambda: __import__('torch').nn.Linear(7, 3)", "build_model fails on"),
        ("window=30", "window must be Window, not 30"),
    ],
)
def test_a_task_that_cannot_work_is_named_before_anything_starts(
    tmp_path: Path, change: str, text: str
) -> None:
    (tmp_path / "mine.py").write_text(
        "import dataclasses\nfrom streams.contract.task import load_task\n"
        f"task = dataclasses.replace(load_task({TINY!r}), {change})\n"
    )
    fails(tidewheel("up", "mine.py:task", "--state", "s", folder=tmp_path), 2, "'tiny'", text)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["up", TINY, "--speed"], ["up", TINY, "--minutes"], ["up", TINY, "--timeout"],
        ["edge", "run", TINY, "--device", "d0", "--speed"], ["controller", TINY, "--min-interval"],
    ],
)  # fmt: skip
def test_a_number_below_zero_is_refused(tmp_path: Path, words: list[str]) -> None:
    done = tidewheel(*words, "-1", folder=tmp_path)
    assert done.returncode == 2
    assert f"Invalid value for '{words[-1]}': -1.0 is not in the range x>=0" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_process_without_its_files_is_told_where_it_looked(tmp_path: Path) -> None:
    done = tidewheel("edge", "run", TINY, "--device", "d0", folder=tmp_path)
    fails(done, 2, "trusted key", ".tidewheel/keys/signing.pub")
    fails(tidewheel("worker", TINY, folder=tmp_path), 2, ".tidewheel/keys/signing.pub")


@pytest.mark.parametrize(
    ("given", "env", "texts"),
    [
        (["--device", "cuda"], {}, ["--device cuda: torch", "finds no CUDA device"]),
        ([], {"TIDEWHEEL_TEACHER_DEVICE": "cuda"}, ["finds no CUDA device", "or use cpu or auto"]),
        (["--device", "gpu"], {}, ["--device gpu: write auto, cpu or cuda"]),
    ],
)
def test_a_teachers_device_that_is_not_there_is_named(
    tmp_path: Path, given: list[str], env: dict[str, str], texts: list[str]
) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": ""}  # also where there is one
    fails(tidewheel("worker", TINY, *given, folder=tmp_path, **env, **hidden), 2, *texts)


def test_a_controller_without_a_registry_is_told_what_to_do(tmp_path: Path) -> None:
    create_key(tmp_path / ".tidewheel" / "keys" / "signing.pem")
    done = tidewheel("controller", TINY, "--registry", "elsewhere", folder=tmp_path)
    fails(done, 2, "elsewhere serves no model", "`tidewheel prepare`")
    done = tidewheel("controller", TINY, "--registry", __file__, folder=tmp_path)
    fails(done, 2, f"{__file__} is a file: name a folder, or a URL")


def test_a_broker_that_does_not_answer_is_named(tmp_path: Path) -> None:
    address, other = (f"127.0.0.1:{port_without_listener()}" for _ in range(2))
    named = ["--kafka", address]
    shown, trained, found = together(
        ["status", TINY, *named], ["train", TINY, *named], ["status", TINY],
        folder=tmp_path, TIDEWHEEL_KAFKA=other,
    )  # fmt: skip
    fails(shown, 1, address, "--kafka HOST:PORT")
    fails(trained, 1, address)
    fails(found, 1, other)


def test_the_state_folders_broker_is_asked_when_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "s" / "broker").mkdir(parents=True)
    ports = tmp_path / "s" / "broker" / "ports.json"
    ports.write_text(json.dumps({"broker": port_without_listener(), "controller": 1}))
    done = tidewheel("status", TINY, "--state", "s", folder=tmp_path)
    fails(done, 1, f"127.0.0.1:{json.loads(ports.read_text())['broker']}")
    for broken in ("{", "[]", '{"broker": "x"}', "{}"):
        ports.write_text(broken)
        fails(tidewheel("status", TINY, "--state", "s", folder=tmp_path), 2, "ports.json")


def test_a_wrong_setting_of_the_environment_is_named(tmp_path: Path) -> None:
    wrong = {"TIDEWHEEL_KAFKA_SECURITY_PROTOCOL": "PLAIN"}
    done = tidewheel("status", TINY, folder=tmp_path, **wrong)
    fails(done, 2, "TIDEWHEEL_KAFKA_SECURITY_PROTOCOL")


def test_a_port_in_use_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        (tmp_path / "s" / "broker").mkdir(parents=True)
        ports = json.dumps({"broker": port, "controller": port_without_listener()})
        (tmp_path / "s" / "broker" / "ports.json").write_text(ports)
        done = tidewheel("up", TINY, "--state", "s", "--json", folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    said, last = done.stderr.splitlines()  # the broker that was chosen, then the error
    assert said.startswith("broker ")
    assert last.startswith(f"tidewheel: port {port} of the broker in ")
    assert "in use" in last


@pytest.mark.parametrize("option", ["--node-key", "--superlink-ca"])
@pytest.mark.parametrize("text", [None, "not what it should be"])
def test_a_file_to_join_runs_with_that_is_missing_or_damaged_is_named_at_the_start(
    tmp_path: Path, option: str, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "file").write_text(text)
    create_key(tmp_path / ".tidewheel" / "keys" / "signing.pem")
    words = ("edge", "run", TINY, "--device", "d0", "--passes", "1", "--kafka", "127.0.0.1:1")
    done = tidewheel(*words, option, "file", folder=tmp_path)
    fails(done, 2, f"{option} file cannot be read", "private key" if "key" in option else "PEM")
    (tmp_path / ".tidewheel" / "devices" / "d0").mkdir(parents=True)  # it has answered before
    done = tidewheel(*words, option, "file", "--trust", "nowhere", folder=tmp_path)
    assert f"{option} file cannot be read" in done.stderr
    assert "d0 answers, and takes part in no run" in done.stderr
    assert "the trusted key nowhere does not exist" in done.stderr  # it did not end for the file


@pytest.mark.parametrize("words", [["up", TINY], ["edge", "run", TINY, "--device", "d0"]])
def test_a_state_folder_that_cannot_be_written_is_named(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "file").write_text("")
    done = tidewheel(*words, "--state", "file/state", folder=tmp_path)
    fails(done, 2, "file/state")


def test_what_is_no_store_is_named(tmp_path: Path) -> None:
    done = tidewheel("query", "select 1", "--store", tmp_path, folder=tmp_path)
    fails(done, 2, str(tmp_path), "is not a store")


@pytest.mark.parametrize("sql", ["select nothing from scores", "selec 1", "select 1 from a b c"])
def test_a_query_that_fails_is_told(tmp_path: Path, sql: str) -> None:
    from streams.worker.store.delta_store import DeltaStore

    DeltaStore(tmp_path / "store")
    done = tidewheel("query", sql, "--store", "store", folder=tmp_path)
    fails(done, 2, "the query failed: ")


def test_a_query_prints_rows_or_json(tmp_path: Path) -> None:
    from streams.worker.store.delta_store import DeltaStore

    DeltaStore(tmp_path / "store")
    words = ["query", "select count(*) as events, '[x]' as name from scores", "--store", "store"]
    done = tidewheel(*words, "--json", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [{"events": 0, "name": "[x]"}]
    copied = "copy (select 7 as n) to 'rows.csv'"
    assert tidewheel("query", copied, "--store", "store", folder=tmp_path).returncode == 0
    assert (tmp_path / "rows.csv").read_text() == "n\n7\n"
    table = tidewheel(*words, folder=tmp_path)
    assert "events" in table.stdout
    assert "[x]" in table.stdout


def test_what_json_has_no_number_for_is_null_in_a_query(tmp_path: Path) -> None:
    from streams.worker.store.delta_store import DeltaStore

    def refused(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    DeltaStore(tmp_path / "store")
    sql = (
        "select 'inf'::float as high, '-inf'::double as low, 1.5::float as usual, "
        "['nan'::float, 2] as listed, {'inner': 'nan'::double} as nested, date '2026-05-01' as day"
    )
    done = tidewheel("query", sql, "--store", "store", "--json", folder=tmp_path)
    assert json.loads(done.stdout, parse_constant=refused) == {
        "high": None, "low": None, "usual": 1.5, "listed": [None, 2.0], "nested": {"inner": None},
        "day": "2026-05-01",
    }  # fmt: skip


def test_a_query_prints_intervals_as_text_in_every_form(tmp_path: Path) -> None:
    """The same in a table, as JSON and in a CSV file, also in lists."""
    from streams.worker.store.delta_store import DeltaStore

    DeltaStore(tmp_path / "store")
    sql = (
        "select * from (values "
        "(1, timestamp '2026-05-10 00:00:12' - timestamp '2026-05-01', [interval 14 month]), "
        "(2, interval 12 second, []), (3, -interval 90 minute, null), (4, null, null)"
        ') rows(n, "the ""delay""", listed) order by n desc'
    )
    delays = [None, "-01:30:00", "00:00:12", "9 days 00:00:12"]
    words = ["--store", "store"]
    lines = tidewheel("query", sql, *words, "--json", folder=tmp_path).stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["n"] for row in rows] == [4, 3, 2, 1]
    assert [row['the "delay"'] for row in rows] == delays
    assert [row["listed"] for row in rows] == [None, None, "[]", "[1 year 2 months]"]
    table = tidewheel("query", sql, *words, folder=tmp_path).stdout
    assert "MonthDayNano" not in table
    tidewheel("query", f"copy ({sql}) to 'rows.csv'", *words, folder=tmp_path)
    written = (tmp_path / "rows.csv").read_text()
    for text in (*filter(None, delays), "[1 year 2 months]"):
        assert text in table
        assert text in written


def test_it_says_its_version(tmp_path: Path) -> None:
    for run in (tidewheel, installed):
        done = run("--version", folder=tmp_path)
        assert (done.returncode, done.stdout) == (0, f"tidewheel {version('tidewheel')}\n")


def test_the_installed_program_says_the_same_as_the_forked_one(tmp_path: Path) -> None:
    """Four of the errors above, and a help text, each from the start of the program."""
    for words in (
        ["up", "--help"],
        ["up", "no-such.py:task"],
        ["worker", TINY],
        ["query", "select 1"],
        ["edge", "run", TINY, "--device", "a b"],
    ):
        forked, real = (run(*words, folder=tmp_path) for run in (tidewheel, installed))
        assert (real.returncode, real.stdout) == (forked.returncode, forked.stdout)
        assert real.stderr == forked.stderr
