"""Write docs/reference/command-line.md from the command line itself.

python docs/tools/command_line.py
"""

import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[2]))

from compose.cli.main import whole

PAGE = Path(__file__).parents[1] / "reference" / "command-line.md"
HEAD = """\
# Command line

Exit codes are in [Errors and exit codes](errors.md#exit-codes). An error is one line on standard
error: what, where, what to do. This page is generated: `python docs/tools/command_line.py`.
`tidewheel --version` prints the version. `TASK` is `path/to/file.py:task` or `package.module:task`.

Options that several commands share; each names them after its usage:

"""


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


def page() -> str:
    """Return the whole page."""
    found = list(commands(whole(), ("tidewheel",)))
    options = {
        path: [option_line(p) for p in command.params if not isinstance(p, click.Argument)]
        for path, command in found
    }
    count = Counter(line for lines in options.values() for line in lines)
    text = HEAD + "".join(sorted(line for line, uses in count.items() if uses > 1))
    for path, command in found:
        own = [line for line in options[path] if count[line] == 1]
        shared = [line[2:].partition(":")[0] for line in options[path] if count[line] > 1]
        about = f"{usage(path, command)}: {cell(command.help or '')}"
        about += f" Shared: {', '.join(shared)}." if shared else ""
        text += f"\n## {path}\n{textwrap.fill(about, 140, break_on_hyphens=False)}\n"
        text += "\n" + "".join(own) if own else ""
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
