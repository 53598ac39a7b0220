import json
import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.submission import Submission, parse_list, parse_run, toml
from streams.contract.errors import ProcessFailed

RUNS = json.dumps({"success": True, "runs": [{"run-id": "7", "status": "finished:failed"}]})


def test_the_run_id_is_read_from_what_flwr_prints() -> None:
    assert parse_run('{"success": true, "run-id": "7"}') == "7"
    assert parse_run('a note\n{"success": true, "run-id": "7"}') == "7"


def test_statuses_are_read() -> None:
    assert parse_list(RUNS) == {"7": "finished:failed"}
    assert parse_list('{"success": true}') == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "gave no JSON: it said nothing"),
        ("Traceback\nboom", "gave no JSON: Traceback boom"),
        ("{", "gave no JSON"),
        ('{"success": true}', "gave no run id"),
        ('{"success": false, "error-message": "no\\n route"}', "failed: no route"),
    ],
)
def test_what_flwr_did_not_do_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ProcessFailed, match=said) as caught:
        parse_run(text)
    assert "\n" not in str(caught.value)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z-]{0,9}", fullmatch=True),
        st.text(st.characters(exclude_categories=["Cs"]))
        | st.integers(-(2**62), 2**62)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.booleans(),
    )
)
def test_any_setting_survives_toml(config: dict[str, str | int | float | bool]) -> None:
    assert tomllib.loads(toml(config)) == config


def test_a_run_is_given_its_settings_in_a_file(tmp_path: Path) -> None:
    program = tmp_path / "flwr"
    program.write_text(
        '#!/bin/sh\ncp "$5" "$HOME_OF_TEST/seen"\necho \'{"success": true, "run-id": "7"}\'\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    env = {"HOME_OF_TEST": str(tmp_path)}
    submission = Submission(str(program), tmp_path / "app", "tidewheel", env)
    assert submission.start({"task": 'a "b"', "rounds": 2}, tmp_path) == "7"
    seen = tomllib.loads((tmp_path / "seen").read_text())
    assert seen == {"task": 'a "b"', "rounds": 2}


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="`flwr list` cannot be run"):
        Submission(str(tmp_path / "none"), tmp_path, "tidewheel").status("7")
