"""Write docs/reference/api.md from the public package's signatures and docstrings.

python docs/tools/python_api.py
"""

import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import tidewheel

PAGE = Path(__file__).parents[1] / "reference" / "api.md"
HEAD = """\
# Python API

`tidewheel` is the public package. Everything it exports is on this page and changes only with an
entry in the changelog. All other packages (`streams`, `federation`, `edge_client`, `compose`) are
private and may change in any version. [Write your own task](../how-to/own-task.md) shows a complete
task file. Examples import what they use from `tidewheel`. This page is generated:
`python docs/tools/python_api.py`.
"""
SECTIONS = {
    "Describe what is learned": (
        "Task", "Segment", "Device", "Reading", "Readings", "Category", "Time", "Answered",
        "Outcome", "Metric", "Tumbling", "Session", "Count", "Sliding", "Window", "Before",
        "Training", "Privacy", "OnnxFile",
    ),
    "Add your own code": ("Strategy", "Move", "MetricFunction", "Source", "Sink"),
    "Read and write what flows": (
        "read_scores", "EventBatch", "Drop", "LabelBatch", "event_schema", "encode_events",
        "decode_events", "load_task",
    ),
    "Score what is stored": ("score", "Manifest", "read_output"),
    "Errors": ("TidewheelError", "UsageError", "TaskError", "MalformedRecord", "BrokerUnavailable"),
}  # fmt: skip
COLUMNS = re.compile(r"\S {2,}\S|^ {2,}\S", re.MULTILINE)
PLACE = re.compile(
    r" at 0x[0-9a-f]+|\b(?:streams|tidewheel|pyarrow|pathlib|collections|typing)(?:\.\w+)*\.(?=\w)"
)
WIDTH = 96


def described(text: str) -> str:
    """Return a docstring as Markdown: aligned paragraphs and examples as code blocks."""
    parts = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith(">>>"):
            shown = re.sub(r"^>>> from tidewheel import .*\n", "", paragraph, flags=re.MULTILINE)
            parts.append(f"```python\n{shown}\n```")
        elif COLUMNS.search(paragraph):
            parts.append(f"```text\n{paragraph}\n```")
        else:
            parts.append(paragraph)
    return "\n\n".join(parts)


def argument(each: inspect.Parameter) -> str:
    """Return one argument as it is written."""
    star = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
    kind = "" if each.annotation is each.empty else f": {PLACE.sub('', _named(each.annotation))}"
    default = "" if each.default is each.empty else f" = {PLACE.sub('', repr(each.default))}"
    return f"{star}{each.name}{kind}{default}"


def _named(annotation: object) -> str:
    return (
        annotation.strip("\"'")
        if isinstance(annotation, str)
        else inspect.formatannotation(annotation)
    )


def signature(name: str, found: Any) -> str:
    """Return how it is called, in lines of at most WIDTH."""
    if isinstance(found, type) and issubclass(found, BaseException):
        return f"class {name}({found.__base__.__name__})"
    if hasattr(found, "__struct_fields__"):  # a document: its fields
        return "\n    ".join(
            textwrap.wrap(f"class {name}: {', '.join(found.__struct_fields__)}", WIDTH)
        )
    if getattr(found, "_is_protocol", False):
        attributes = inspect.get_annotations(found).items()
        lines = [f"    {each}: {getattr(of, '__name__', of)}" for each, of in attributes]
        return "\n".join([f"class {name}(Protocol)", *lines])
    about, arguments = inspect.signature(found), []
    for each in about.parameters.values():
        if each.kind is each.KEYWORD_ONLY and "*" not in arguments:
            arguments.append("*")
        arguments.append(argument(each))
    word, end = "class", ""
    if not isinstance(found, type):
        word, end = "def", f" -> {PLACE.sub('', _named(about.return_annotation))}"
    line = f"{word} {name}({', '.join(arguments)}){end}"
    lines = textwrap.wrap(line.replace(": ", ":\0").replace(" = ", "\0=\0"), WIDTH)
    return "\n    ".join(lines).replace("\0", " ")


def methods(protocol: type) -> str:
    """Return how the methods of a Protocol are called, and what they return."""
    parts = []
    for name, found in vars(protocol).items():
        if inspect.isfunction(found) and (name == "__call__" or not name.startswith("_")):
            about = described(found.__doc__ or "")
            parts.append(f"\n\n```python\n{signature(name, found)}\n```\n\n{about}")
    return "".join(parts)


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}\n")
        for name in names:
            found = getattr(tidewheel, name)
            parts.append(f"### {name}\n```python\n{signature(name, found)}\n```\n")
            about = described(found.__doc__ or "")
            about += methods(found) if getattr(found, "_is_protocol", False) else ""
            error = isinstance(found, type) and issubclass(found, BaseException)
            parts.append((about.partition("\n\n```python")[0] if error else about) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
