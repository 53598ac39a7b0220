"""What `up` has seen is there when the broker is gone."""

import json
from pathlib import Path

import pytest

from compose.launcher.state_dir import StateDir
from compose.reports import follower
from compose.reports.follower import Follower, LastSeen
from streams.kafka.settings import BrokerSettings
from tests.compose.cli.test_cli import TINY, fails, port_without_listener, tidewheel
from tests.compose.messages import TASK, received, release, state, step, window


def test_of_devices_and_decisions_the_last_word_is_kept_of_others_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "LAST", 3)
    seen, path = LastSeen(), tmp_path / "last-seen.jsonl"
    for produced in (1, 2):
        seen.take(state("d0", produced=produced))
    for second in range(5):
        seen.take(window("d0", second))
    seen.take(received("rounds", "r", b"\xff no text"))
    path.write_text(seen.text() or "")
    found = LastSeen.read(path)
    assert found is not None
    messages, at_us = found
    assert at_us > 0
    topics = [message.topic.removeprefix(f"{TASK}.") for message in messages]
    assert topics == ["fleet", "windows", "windows", "windows", "rounds"]
    assert json.loads(messages[0].value or b"")["produced"] == 2
    assert json.loads(messages[1].value or b"")["window_us"] == 2_000_000
    assert messages[-1].value == b"\xff no text"


def test_a_file_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    path = tmp_path / "last-seen.jsonl"
    for text in (None, "", "{", '{"time_us": 1}\n{}', "[]", '{"time_us": "x"}'):
        if text is not None:
            path.write_text(text)
        assert LastSeen.read(path) is None


def test_status_and_timeline_show_it_and_say_that_no_broker_answers(tmp_path: Path) -> None:
    seen, address = LastSeen(), f"127.0.0.1:{port_without_listener()}"
    for message in (state("d0"), window("d0", 0), release("1-aaaaaaaa"), step("promoted")):
        seen.take(message)
    words = [TINY, "--kafka", address, "--json"]
    fails(tidewheel("status", *words, folder=tmp_path), 1, address)  # nothing was seen yet
    (tmp_path / ".tidewheel").mkdir()
    StateDir(tmp_path / ".tidewheel").last_seen.write_text(seen.text() or "")
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
    path = tmp_path / "last-seen.jsonl"
    path.write_text("earlier")
    following = Follower(BrokerSettings(bootstrap="127.0.0.1:1"), TASK)
    following.keep(path)
    assert path.read_text() == "earlier"
    following._seen.take(state("d0"))
    following.keep(path)
    assert LastSeen.read(path) is not None
    (tmp_path / "file").write_text("")
    following.keep(tmp_path / "file" / "last-seen.jsonl")
    assert "is not written" in caplog.text
