"""The benchmark's report is made from its JSON."""

import pytest

from tests.bench.report import Figure, Goal, Results, Table, render


def results() -> Results:
    speed = Figure.of([12345.6, 12000.0, 13000.0])
    table = Table("The worker", "As measured.", ["", "rows/s", "share"], [["worker", speed, 0.732]])
    failed = Table("Elsewhere", "", ["", "rows/s"], [["other", "failed: gone"]])
    goals = [
        Goal("worker / limit", Figure.of([0.69, 0.72, 0.74]), at_least=0.7),
        Goal("CPU a row", 1.3, at_most=1.2),
    ]
    facts = {"command": "python -m x", "date": "today"}
    return Results(facts, {"streams": "abc"}, [table, failed], goals)


def test_the_report_is_the_same_from_its_json() -> None:
    assert Results.from_json(results().to_json()) == results()


def test_the_report_has_every_figure_and_says_which_goals_are_missed() -> None:
    text = render(results())
    assert "- command: `python -m x`" in text
    assert "| worker | 12,346 (12,000 to 13,000) | 0.73 |" in text
    assert "| other | failed: gone |" in text
    assert "| worker / limit | at least 0.70 | 0.72 (0.69 to 0.74) | met |" in text
    assert "| CPU a row | at most 1.20 | 1.30 | **missed** |" in text


def test_a_figure_that_was_measured_once_has_no_spread() -> None:
    assert str(Figure.of([0.5])) == "0.50"


def test_a_ratio_compares_what_was_measured_in_the_same_turn() -> None:
    found = Figure.ratio([10.0, 30.0, 20.0], [5.0, 10.0, 10.0])
    assert (found.median, found.low, found.high, found.runs) == (2.0, 2.0, 3.0, 3)


def test_a_ratio_of_unequal_turns_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        Figure.ratio([1.0], [1.0, 2.0])
