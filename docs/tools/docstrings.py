"""How mkdocstrings reads the public package: the form of its docstrings and its documents."""

import inspect
import re
from typing import Any

import griffe

COLUMNS = re.compile(r"\S {2,}\S|^ {2,}\S", re.MULTILINE)


class PublicApi(griffe.Extension):
    """Docstrings become Markdown; named tuples and documents are created with their fields."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        classes = [*reversed(cls.mro()), cls]
        bases = {re.sub(r".*\.", "", str(base)) for each in classes for base in each.bases}
        if bases & {"NamedTuple", "Struct"}:
            kinds = griffe.ParameterKind
            kind = kinds.keyword_only if "Document" in bases else kinds.positional_or_keyword
            found = {name: field for each in classes for name, field in each.attributes.items()}
            fields = [
                griffe.Parameter(name, annotation=field.annotation, kind=kind, default=field.value)
                for name, field in found.items()
                if "property" not in field.labels
            ]
            created = griffe.Function("__init__", parameters=griffe.Parameters(*fields))
            cls.set_member("__init__", created)


def markdown(docstring: str) -> str:
    """Return a docstring with its aligned paragraphs and examples as code blocks."""
    parts = []
    for paragraph in inspect.cleandoc(docstring).split("\n\n"):
        if paragraph.startswith(">>>"):
            shown = re.sub(r"^>>> from tidewheel import .*\n", "", paragraph, flags=re.MULTILINE)
            parts.append(f"```python\n{shown}\n```")
        elif COLUMNS.search(paragraph):
            parts.append(f"```text\n{paragraph}\n```")
        else:
            parts.append(paragraph)
    return "\n\n".join(parts)
