"""The token is a secret of its owner, and a session ends."""

import stat
from pathlib import Path

import pytest

from compose.dashboard.web.sessions import ACTS_S, READS_S, WAIT_S, Sessions, read_token
from streams.contract.errors import UsageError

TOKEN = "t" * 43


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_token_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "console-token"
    token = read_token(path)
    assert len(token) >= 43
    assert read_token(path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_token_that_others_can_read_or_guess_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "console-token"
    read_token(path)
    path.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        read_token(path)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(UsageError, match="remove it"):
        read_token(path)


def test_a_session_stops_acting_when_it_is_not_used_and_ends_after_hours() -> None:
    clock = Clock()
    sessions = Sessions(TOKEN, clock)
    name = sessions.open(TOKEN)
    assert sessions.may_act(name)
    clock.now += ACTS_S - 1
    sessions.acted(name)
    clock.now += ACTS_S - 1
    assert sessions.may_act(name)
    clock.now += 1
    assert not sessions.may_act(name)
    assert sessions.may_read(name)
    clock.now += READS_S
    assert not sessions.may_read(name)


def test_nobody_acts_with_a_made_up_or_closed_session_or_without_a_token() -> None:
    sessions = Sessions(TOKEN)
    name = sessions.open(TOKEN)
    assert not sessions.may_act("made-up")
    assert not sessions.may_act(None)
    sessions.close(name)
    assert not sessions.may_read(name)
    assert Sessions(None).open("") is None
    assert Sessions(None).open("None") is None


def test_wrong_tokens_make_even_the_right_one_wait() -> None:
    clock = Clock()
    sessions = Sessions(TOKEN, clock)
    for _ in range(5):
        assert sessions.open("wrong") is None
    assert sessions.open(TOKEN) is None
    clock.now += WAIT_S
    assert sessions.open(TOKEN) is not None
