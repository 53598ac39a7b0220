"""Says on a page of docs/benchmarks that its code has changed since it was measured.

A hook of mkdocs, named in mkdocs.yml.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench.staleness import ROOT, warning


def with_warning(markdown: str, figures: dict[str, Any], root: Path = ROOT) -> str:
    """Return the page, with an admonition under its title where the code differs by now."""
    old = warning(figures["facts"]["commit"], figures["digests"], root)
    if old is None:
        return markdown
    before, title, after = markdown.partition("\n# ")
    heading, _, rest = after.partition("\n")
    return f'{before}{title}{heading}\n\n!!! warning "Measured on older code"\n\n    {old}\n{rest}'


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    source = Path(page.file.abs_src_path)
    figures = source.with_suffix(".json")
    if source.parent.name != "benchmarks" or not figures.exists():
        return markdown
    return with_warning(markdown, json.loads(figures.read_text()))
