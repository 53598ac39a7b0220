"""The table at the end of `tidewheel up`."""

from typing import Any

import pytest

from tests.compose.messages import release, state
from tests.compose.reports.test_summary import FIRST, LAST, score, shown_by, summary


def test_one_version_is_named_once() -> None:
    accuracy = {FIRST: score(10, 4)}
    found = summary(state("d0", accuracy=accuracy), release(FIRST), server={("d0", "e1"): (10, 0)})
    shown = shown_by(found)
    assert f"accuracy of the device's answers by {FIRST}, on its held-out segments" in shown
    [heading] = [row.split() for row in shown.splitlines() if row.startswith(" device ")]
    assert heading == ["device", "serves", "accuracy", "produced", "delivered", "scored"]
    assert "None" not in shown_by(summary(server={}))


@pytest.mark.parametrize(
    "more",
    [{}, {"delivered": 1120, "pending": 80, "dropped": {"full": 34}}],
    ids=["all delivered", "dropped and pending"],
)
def test_a_terminal_of_80_columns_shows_names_versions_and_headings_whole(
    more: dict[str, Any],
) -> None:
    accuracy = {FIRST: score(312, 240), LAST: score(312, 290)}
    counts = {"produced": 1234, "delivered": 1234, **more}
    devices = [state(f"person-1{n}", active=LAST, accuracy=accuracy, **counts) for n in range(6)]
    shown = shown_by(summary(*devices, release(FIRST, 1), release(LAST, 2), server={}), width=80)
    rows = [row.split() for row in shown.splitlines()]
    account = ["produced", "delivered", *(("dropped", "pending") if more else ()), "scored"]
    assert ["device", "serves", "before", "after", *account] in rows
    assert [row[:3] for row in rows if row[:1] == ["person-13"]] == [["person-13", LAST, "0.77"]]
    assert "…" not in shown
    assert max(map(len, shown.splitlines()[:12])) <= 80


def test_what_a_device_keeps_is_shown_with_its_reason() -> None:
    kept = {"origin": "previous", "model": f"{LAST}.k{FIRST}", "base": LAST, "segments": 51,
            "loss": 0.02, "base_loss": 0.39, "answers": True,
            "made_us": 1, "since_us": 1}  # fmt: skip
    found = summary(state("d0", active=LAST, challenger=kept), state("d1", active=LAST), server={})
    text = " ".join(shown_by(found).split())
    assert f"d0 {LAST}* " in text
    assert "*: an adapter, an earlier version or a copy answers" in text
    assert f"d0 keeps {FIRST}: error 0.02 against 0.39 on 51 segments" in text
