"""What `up` has seen is there when the broker is gone."""

import json
from pathlib import Path

import pytest

from compose.launcher.state_dir import StateDir
from compose.reports.follower import Follower, last_seen
from streams.fleet.snapshot import encode
from streams.fleet.view import FleetView
from streams.kafka.settings import BrokerSettings
from tests.compose.cli.test_cli import TINY, fails, port_without_listener, tidewheel
from tests.compose.messages import TASK, release, state, step, window


def test_a_file_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    path = tmp_path / "last-seen.view"
    for data in (None, b"", b"{", b"\0" * 7 + b"\x02{}", bytes(9), b"\xff" * 40):
        if data is not None:
            path.write_bytes(data)
        assert last_seen(path) is None


def test_status_and_timeline_show_it_and_say_that_no_broker_answers(tmp_path: Path) -> None:
    seen, address = FleetView(TASK), f"127.0.0.1:{port_without_listener()}"
    for message in (state("d0"), window("d0", 0), release("1-aaaaaaaa"), step("promoted")):
        seen.absorb(message)
    words = [TINY, "--kafka", address, "--json"]
    fails(tidewheel("status", *words, folder=tmp_path), 1, address)  # nothing was seen yet
    (tmp_path / ".tidewheel").mkdir()
    StateDir(tmp_path / ".tidewheel").last_seen.write_bytes(encode(seen, 1))
    done = tidewheel("status", *words, folder=tmp_path)
    assert done.returncode == 0
    assert "what `tidewheel up` saw last" in done.stderr
    assert address in done.stderr
    found = json.loads(done.stdout)
    assert [device["device"] for device in found["devices"]] == ["d0"]
    assert (found["windows"], found["rounds"]["promoted"]) == (1, 1)
    assert "d0" in tidewheel("status", *words[:-1], folder=tmp_path).stdout
    done = tidewheel("timeline", *words, folder=tmp_path)
    assert done.returncode == 0
    kinds = {json.loads(line)["kind"] for line in done.stdout.splitlines()}
    assert {"run", "decision"} <= kinds


def test_nothing_seen_leaves_the_file_and_a_folder_that_is_gone_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "last-seen.view"
    path.write_text("earlier")
    following = Follower(BrokerSettings(bootstrap="127.0.0.1:1"), TASK)
    following.keep(path)
    assert path.read_text() == "earlier"
    following.read(lambda view: view.absorb(state("d0")))
    following.keep(path)
    found = last_seen(path)
    assert found is not None
    assert list(found[0].devices) == ["d0"]
    (tmp_path / "file").write_text("")
    following.keep(tmp_path / "file" / "last-seen.view")
    assert "is not written" in caplog.text
