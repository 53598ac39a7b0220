"""The benchmark's report is made from its JSON."""

from pathlib import Path

from tests.bench.report import Goal, Results, Table, insert, markers, render

BEGIN, END = markers("bench-here")


def results() -> Results:
    table = Table(
        "The worker", "As measured.", ["", "rows/s", "share"], [["worker", 12345.6, 0.7321]]
    )
    failed = Table("Elsewhere", "As measured.", ["", "rows/s"], [["other", "failed: gone"]])
    goals = [Goal("worker / limit", 0.7321, at_least=0.7), Goal("CPU a row", 1.3, at_most=1.2)]
    return Results({"command": "python -m x", "date": "today"}, [table, failed], goals)


def test_the_report_is_the_same_from_its_json() -> None:
    assert render(Results.from_json(results().to_json())) == render(results())


def test_the_report_has_every_figure_and_says_which_goals_are_missed() -> None:
    text = render(results())
    assert "- command: `python -m x`" in text
    assert "| worker | 12,346 | 0.73 |" in text
    assert "| other | failed: gone |" in text
    assert "| worker / limit | at least 0.70 | 0.73 | met |" in text
    assert "| CPU a row | at most 1.20 | 1.30 | **missed** |" in text


def test_a_page_keeps_what_stands_around_the_report(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    insert(page, "bench-here", "new")
    assert page.read_text() == f"# Before\n\n{BEGIN}\nnew\n{END}\n\nafter\n"


def test_a_page_without_markers_gets_them_at_its_end(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "page.md"
    insert(page, "bench-here", "first")
    insert(page, "bench-here", "second")
    assert page.read_text() == f"# Benchmarks\n\n{BEGIN}\nsecond\n{END}\n"
