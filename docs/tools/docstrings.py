"""Shows docstrings as they are written: a paragraph that is aligned in columns becomes a block.

A griffe extension, named in mkdocs.yml.
"""

import re
from typing import Any

import griffe

COLUMNS = re.compile(r"\S {2,}\S|^ {2,}\S", re.MULTILINE)


def shown(text: str) -> str:
    """Return a docstring as Markdown: aligned paragraphs and examples as code blocks."""
    parts = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith(">>>"):
            parts.append(f"```python\n{paragraph}\n```")
        elif COLUMNS.search(paragraph):
            parts.append(f"```text\n{paragraph}\n```")
        else:
            parts.append(paragraph)
    return "\n\n".join(parts)


class Docstrings(griffe.Extension):
    """Prepares every docstring for Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = shown(obj.docstring.value)
