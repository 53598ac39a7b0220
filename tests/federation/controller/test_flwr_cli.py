import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.controller.flwr_cli import Flwr, Submission, parse_answer, run_id, toml
from streams.contract.errors import ProcessFailed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "returned no JSON: no output"),
        ("Traceback\nboom", "returned no JSON: Traceback boom"),
        ("{", "returned no JSON"),
        ('{"success": true}', "returned no run id"),
        ('{"success": false, "error-message": "no\\n route"}', "failed: no route"),
    ],
)
def test_what_flwr_did_not_do_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ProcessFailed, match=said) as caught:
        run_id(parse_answer(text, "run"))
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
    submission = Submission(Flwr(str(program), "tidewheel", env), tmp_path / "app")
    assert submission.start({"task": 'a "b"', "rounds": 2}, tmp_path) == "7"
    seen = tomllib.loads((tmp_path / "seen").read_text())
    assert seen == {"task": 'a "b"', "rounds": 2}


def test_a_run_starts_with_the_files_of_who_submits_it(tmp_path: Path) -> None:
    """Also where another process of the state folder has written its own meanwhile."""
    program = tmp_path / "flwr"
    program.write_text('#!/bin/sh\ncp "$2" "$2.seen"\necho \'{"success": true, "run-id": "7"}\'\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    app = tmp_path / "app"
    submission = Submission(Flwr(str(program), "tidewheel"), app, files={app: b"its own"})
    app.write_bytes(b"another's")
    submission.start({}, tmp_path)
    assert Path(f"{app}.seen").read_bytes() == b"its own"


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="`flwr list` cannot be run"):
        Submission(Flwr(str(tmp_path / "none"), "tidewheel"), tmp_path).runs()
