"""The pages use plain, standard English: none of the phrases below, outside of code."""

import re
from pathlib import Path

import pytest

from tests.docs.test_docs import tool

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PHRASES = {  # pattern: what to write
    r"\b(told|tell|tells|telling)\b": "announced, published, reported, says",
    r"(?<!here )\b(is|are|was|were) no (?!longer|more|less)\w+": "is not a, has no",
    r"\b(whoever|nobody|somebody|no one|anybody)\b": "the reader, the process, none",
    r"\b(go|goes|went|gone|going) on\b": "continue, continues",
    r"\bof (its|their|his|our) own\b": "its own X, a separate X",
    r"\bby (itself|themselves|oneself)\b": "automatically, alone",
    r"\bby hand\b": "manual, manually",
    r"\b(not|of) ours\b": "not Tidewheel's",
    r"\bbec(a|o)mes? of\b": "happens to",
    r"\bsays? so\b": "reports it, logs it",
    r"\bfor ever\b": "forever, without end",
    r"\banew\b": "again",
    r"\b(mend|mends|mended)\b": "repair, fix",
    r"\bknows? no\b": "does not know, has no",
    r"\bgives? way\b": "fails, is evicted",
    r"\bin (its|their) place\b": "instead",
    r"\bas (it|they) (comes?|stands?)\b": "unchanged",
    r"\b(thereof|therein|wherein|whereupon)\b": "of it, in it",
    r"\bthat is all\b": "subject, verb, object",
    r"\bcomes? to nothing\b": "fails",
}
CODE = re.compile(r"^```.*?^```|`[^`\n]+`|\]\([^)]+\)", re.MULTILINE | re.DOTALL)


def found(text: str) -> list[str]:
    """Return what of a text is among the phrases."""
    return [hit[0] for phrase in PHRASES for hit in re.finditer(phrase, text, re.IGNORECASE)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_page_has_none_of_the_phrases(page: Path) -> None:
    text = CODE.sub("", page.read_text())
    assert found(text) == []


def test_the_generated_pages_have_none_of_the_phrases() -> None:
    import tidewheel

    markdown, names = tool("docstrings").markdown, tidewheel.__all__
    text = tool("command_line").text()
    text += "\n\n".join(markdown(getattr(tidewheel, name).__doc__) for name in names)
    assert found(CODE.sub("", text)) == []
