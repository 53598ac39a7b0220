"""The commands and options of docs/reference/command-line.md, which a hook of mkdocs adds to it.

`python docs/tools/command_line.py` prints them, and how many there are.
"""

import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parents[2]))

from compose.cli.main import whole

PAGE = "reference/command-line.md"


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    """Yield ("tidewheel edge run", the command) for every command."""
    if isinstance(command, click.Group):
        for name, child in sorted(command.commands.items()):
            yield from commands(child, (*path, name))
    else:
        yield " ".join(path), command


def cell(text: str) -> str:
    """Return text without what Markdown reads as markup."""
    for character, escaped in (("<", "&lt;"), ("|", "\\|"), ("_", "\\_"), ("*", "\\*")):
        text = text.replace(character, escaped)
    return " ".join(text.split())


def option_line(option: click.Parameter) -> str:
    """Return the list item of one option."""
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    help_text = str(getattr(option, "help", "") or "")
    if isinstance(option.type, click.Choice):
        help_text += f" One of {', '.join(option.type.choices)}."
    if option.required:
        help_text += " Required."
    text = cell(help_text)
    if option.default not in (None, False, "") and not callable(option.default):
        text += f" Default: `{option.default}`."
    if option.envvar:
        text += f" Environment: `{option.envvar}`."
    return f"- {names}: {text}\n"


def usage(path: str, command: click.Command) -> str:
    """Return the usage line: arguments in their order."""
    parts = [path]
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            name = parameter.metavar or str(parameter.name).upper()
            bare = name.strip("[]")
            shown = bare if parameter.required else f"[{bare}]"
            parts.append(shown + ("..." if parameter.nargs == -1 else ""))
        elif parameter.required:
            parts.append(f"{parameter.opts[0]} {parameter.metavar or str(parameter.name).upper()}")
    return f"`{' '.join(parts)} [OPTIONS]`"


def text() -> str:
    """Return the shared options and all commands as Markdown."""
    found = list(commands(whole(), ("tidewheel",)))
    options = {
        path: [option_line(p) for p in command.params if not isinstance(p, click.Argument)]
        for path, command in found
    }
    count = Counter(line for lines in options.values() for line in lines)
    parts = sorted(line for line, uses in count.items() if uses > 1)
    for path, command in found:
        own = [line for line in options[path] if count[line] == 1]
        shared = [line[2:].partition(":")[0] for line in options[path] if count[line] > 1]
        about = f"{usage(path, command)}: {cell(command.help or '')}"
        about += f" Shared: {', '.join(shared)}." if shared else ""
        parts.append(f"\n## {path}\n{textwrap.fill(about, 140, break_on_hyphens=False)}\n")
        parts += ["\n", *own] if own else []
    return "".join(parts)


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Return the page with the commands."""
    return f"{markdown}\n{text()}" if page.file.src_uri == PAGE else markdown


if __name__ == "__main__":
    found = dict(commands(whole(), ("tidewheel",)))
    options = {p.opts[0] for c in found.values() for p in c.params if isinstance(p, click.Option)}
    print(f"{text()}\n{len(found)} commands, {len(options)} distinct options")  # noqa: T201
