import stat
import tomllib
from pathlib import Path

import pytest

from compose.launcher import flower_processes
from compose.launcher.certificates import make_certificates
from federation.rounds.settings import RUN_CONFIG
from streams.contract.errors import UsageError


def test_nothing_listens_beyond_loopback_and_nothing_is_fetched(tmp_path: Path) -> None:
    superlink = flower_processes.superlink(tmp_path, 4001)
    assert superlink.argv[superlink.argv.index("--host") + 1] == "127.0.0.1"
    for launch in (superlink, flower_processes.superexec(tmp_path, 4001)):
        assert launch.env["FLWR_TELEMETRY_ENABLED"] == "0"
        assert launch.env["FLWR_DISABLE_UPDATE_CHECK"] == "1"
        assert launch.env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
        assert "--allow-runtime-dependency-installation" not in launch.argv
    assert "--disable-runtime-dependency-installation" in superlink.argv


def test_the_secret_is_private_and_stays(tmp_path: Path) -> None:
    first = flower_processes.superlink(tmp_path, 1)
    second = flower_processes.superexec(tmp_path, 1, {"TIDEWHEEL_KAFKA": "h:1"})
    (path,) = set(first.argv) & set(second.argv) - {"--insecure", "--superexec-auth-secret-file"}
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    secret = Path(path).read_bytes()
    flower_processes.superlink(tmp_path, 1)
    assert Path(path).read_bytes() == secret
    assert second.env["TIDEWHEEL_KAFKA"] == "h:1"


def test_the_app_holds_settings_and_no_code(tmp_path: Path) -> None:
    submission = flower_processes.submission(
        tmp_path, "127.0.0.1:4001", {"task": 'odd "name".py:task', "rounds": 2}
    )
    submission.write()
    app = tomllib.loads((submission.app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["fab-include"] == ["README.md"]
    assert app["config"] == {
        **RUN_CONFIG,
        "task": 'odd "name".py:task',
        "rounds": 2,
    }
    assert not list(submission.app.rglob("*.py"))
    home = Path(submission.flwr.env["FLWR_HOME"])
    connection = tomllib.loads((home / "config.toml").read_text())["superlink"]["tidewheel"]
    assert connection == {"address": "127.0.0.1:4001", "insecure": True}


def test_a_controller_that_waits_leaves_the_settings_of_the_one_that_leads(tmp_path: Path) -> None:
    """Its own, with another broker and another SuperLink, it writes when it leads."""
    leads = flower_processes.submission(tmp_path, "127.0.0.1:4001", {"kafka": "right:9092"})
    leads.write()
    before = {path: path.read_bytes() for path in leads.files}
    waits = flower_processes.submission(tmp_path, "127.0.0.1:4002", {"kafka": "wrong:9092"})
    assert waits.files.keys() == before.keys()
    assert {path: path.read_bytes() for path in leads.files} == before
    waits.write()
    assert b"wrong:9092" in (waits.app / "pyproject.toml").read_bytes()
    assert {path: path.read_bytes() for path in leads.files} == waits.files


def test_with_tls_everybody_is_told_whom_to_trust(tmp_path: Path) -> None:
    tls = make_certificates(tmp_path / "keys")
    superlink = flower_processes.superlink(tmp_path, 1, tls).argv
    assert "--enable-supernode-auth" in superlink
    argv = flower_processes.superexec(tmp_path, 1, ca=tls.ca).argv
    assert argv[argv.index("--root-certificates") + 1] == str(tls.ca)
    assert "--insecure" not in superlink
    flwr = flower_processes.flwr(tmp_path, "127.0.0.1:1", tls.ca)
    home = Path(flwr.env["FLWR_HOME"])
    connection = tomllib.loads((home / "config.toml").read_text())["superlink"]["tidewheel"]
    assert connection == {"address": "127.0.0.1:1", "root-certificates": str(tls.ca)}
    assert flower_processes.flwr(tmp_path) == flwr  # the one that the state folder had last


def test_an_unknown_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no setting 'round'"):
        flower_processes.submission(tmp_path, "127.0.0.1:4001", {"round": 2})
