"""The pages of docs/benchmarks are what their figures say, and tell when the code has changed."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import pages, staleness
from tests.bench.report import Results


@pytest.mark.parametrize("name", pages.written())
def test_a_page_is_made_of_its_figures_alone(name: str) -> None:
    differs = "edited by hand, or not written again: run `python -m tests.bench.pages`"
    assert (pages.PAGES / f"{name}.md").read_text() == pages.page(name), differs


@pytest.mark.parametrize("name", pages.written())
def test_a_page_names_its_commit_and_what_it_measured(name: str) -> None:
    results = pages.read(name)
    assert results.facts["commit"]
    assert results.digests.keys() == set(pages.PARTS[name])


# What writes pages and compares them decides no figure.
PAPER = ("tests/bench/pages.py", "tests/bench/staleness.py")


def imported(folder: Path) -> Iterator[str]:
    """The files of this repository that the code of a folder imports, as paths below its root."""
    for path in folder.rglob("*.py"):
        if path.name.startswith("test_"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                place = staleness.ROOT / name.replace(".", "/")
                if place.with_suffix(".py").is_file():
                    yield str(place.with_suffix(".py").relative_to(staleness.ROOT))


def test_every_part_that_a_page_measures_is_there() -> None:
    parts = {part for some in pages.PARTS.values() for part in some}
    assert [part for part in sorted(parts) if not (staleness.ROOT / part).exists()] == []


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pages, "PAGES", tmp_path / "docs")
    monkeypatch.setattr(pages, "RUNS", tmp_path / "runs")
    return tmp_path


def test_a_run_of_a_part_leaves_its_figures_and_no_page(elsewhere: Path) -> None:
    pages.finish("streams", Results({"commit": "abc"}), whole=False)
    assert [path.name for path in elsewhere.rglob("*.*")] == ["streams.json"]


def test_a_whole_run_writes_its_page(elsewhere: Path) -> None:
    pages.finish("streams", Results({"commit": "abc"}), whole=True)
    text = (elsewhere / "docs" / "streams.md").read_text()
    assert text == pages.page("streams")
    assert "- commit: abc" in text


def test_code_that_changes_during_a_run_is_named(elsewhere: Path) -> None:
    pages.finish("streams", Results({"commit": "abc"}, {"streams": "other"}), whole=True)
    assert pages.read("streams").facts["commit"] == "abc, with changes during the run"


# --- staleness -----------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "code" / "inner").mkdir(parents=True)
    (tmp_path / "code" / "inner" / "one.py").write_text("1\n")
    return tmp_path


def test_what_python_compiles_texts_and_tests_do_not_make_a_page_old(tree: Path) -> None:
    before = staleness.digests(["code"], tree)
    (tree / "code" / "__pycache__").mkdir()
    for name in ("__pycache__/one.py", "about.md", "test_one.py"):
        (tree / "code" / name).write_text("2\n")
    assert staleness.changed(before, tree) == []


def test_a_file_that_changes_makes_a_page_old(tree: Path) -> None:
    before, one = staleness.digests(["code/inner/one.py"], tree), tree / "code" / "inner" / "one.py"
    assert staleness.changed(before, tree) == []
    one.write_text("2\n")
    assert staleness.changed(before, tree) == ["code/inner/one.py"]
    one.unlink()
    assert staleness.changed(before, tree) == ["code/inner/one.py"]


@pytest.mark.parametrize("change", ["another content", "another name", "one more", "gone"])
def test_any_other_change_makes_a_page_old(change: str, tree: Path) -> None:
    before, one = staleness.digests(["code", "other"], tree), tree / "code" / "inner" / "one.py"
    if change == "another content":
        one.write_text("2\n")
    elif change == "another name":
        one.rename(one.with_name("two.py"))
    elif change == "one more":
        one.with_name("two.py").write_text("1\n")
    else:
        one.unlink()
    assert staleness.changed(before, tree) == ["code"]
    assert staleness.warning("abc", before, tree) == (
        "The figures are of commit abc. Since then `code` changed."
    )


def test_the_site_says_at_the_top_of_a_page_that_it_is_old(tree: Path) -> None:
    hook = staleness.ROOT / "docs" / "tools" / "benchmarks.py"
    spec = importlib.util.spec_from_file_location("docs_benchmarks", hook)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text, commit = "<!-- made -->\n\n# Title\n\nText.\n", {"commit": "abc"}
    same = {"facts": commit, "digests": staleness.digests(["code"], tree)}
    assert module.with_warning(text, same, tree) == text
    old = module.with_warning(text, {"facts": commit, "digests": {"code": "other"}}, tree)
    assert old.startswith(
        '<!-- made -->\n\n# Title\n\n!!! warning "Measured on older code"\n\n    '
    )
    assert old.endswith("`code` changed.\n\nText.\n")
