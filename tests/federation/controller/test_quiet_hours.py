from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.controller.quiet_hours import QuietHours
from streams.contract.errors import UsageError

minutes = st.integers(0, 24 * 60 - 1)


def test_over_midnight_and_within_a_day() -> None:
    night, noon = QuietHours.parse("22:00-06:00"), QuietHours.parse("12:30-13:00")
    held = {m for m in range(24 * 60) if night.hold(m)}
    assert held == {*range(22 * 60, 24 * 60), *range(6 * 60)}
    assert [m for m in range(24 * 60) if noon.hold(m)] == list(range(750, 780))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "22-6",
        "24:00-06:00",
        "22:60-06:00",
        "22:00",
        "a:b-c:d",
        "22:00-06:00-07:00",
        "٢٢:00-06:00",
    ],
)
def test_what_are_no_times_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="write them as 22:00-06:00") as error:
        QuietHours.parse(text)
    assert repr(text) in str(error.value)


def test_hours_that_begin_when_they_end_are_an_error() -> None:
    with pytest.raises(UsageError, match="begin and end at once"):
        QuietHours.parse("06:00-6:00")


@given(minutes, minutes)
def test_what_is_said_is_parsed_again(begin: int, end: int) -> None:
    hours = QuietHours(begin, end)
    if begin != end:
        assert QuietHours.parse(str(hours)) == hours


@given(st.text(max_size=20))
def test_any_text_is_hours_or_a_usage_error(text: str) -> None:
    with suppress(UsageError):
        QuietHours.parse(text)
