"""Write docs/reference/command-line.md from the command line itself.

python docs/tools/command_line.py
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[2]))

from compose.cli.main import whole

PAGE = Path(__file__).parents[1] / "reference" / "command-line.md"
HEAD = """\
# Command line

Exit codes are in [Errors and exit codes](errors.md#exit-codes). An error is one line on standard
error: what, where, what to do. This page is generated:
`python docs/tools/command_line.py`.

`tidewheel --version` prints the version. `TASK` is `path/to/file.py:task` or
`package.module:task`. Options that several commands share:

| option | meaning |
|---|---|
"""
SHARED = ("--state", "--kafka", "--registry", "--superlink", "--superlink-ca", "--trust")
SHARED += ("--strategy", "--stages", "--metrics-port", "--device", "--json")


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    """Yield ("tidewheel edge run", the command) for every command."""
    if isinstance(command, click.Group):
        for name, child in sorted(command.commands.items()):
            yield from commands(child, (*path, name))
    else:
        yield " ".join(path), command


def cell(text: str) -> str:
    """Return text as the cell of a table."""
    for character, escaped in (("<", "&lt;"), ("|", "\\|"), ("_", "\\_"), ("*", "\\*")):
        text = text.replace(character, escaped)
    return " ".join(text.split())


def option_row(option: click.Parameter) -> str:
    """Return the table row of one option."""
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
    return f"| {names} | {text} |\n"


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
    return f"```\n{' '.join(parts)} [OPTIONS]\n```\n"


def paragraphs(text: str) -> str:
    """Return the paragraphs of a help text, one a line."""
    return "\n\n".join(" ".join(part.split()).replace("<", "&lt;") for part in text.split("\n\n"))


def page() -> str:
    """Return the whole page."""
    found = list(commands(whole(), ("tidewheel",)))
    shared: dict[str, click.Parameter] = {}
    for _, command in found:
        for parameter in command.params:
            if parameter.opts[0] in SHARED:
                shared.setdefault(parameter.opts[0], parameter)
    text = HEAD + "".join(option_row(shared[name]) for name in SHARED if name in shared) + "\n"
    for path, command in found:
        text += f"## {path}\n\n{paragraphs(command.help or '')}\n\n{usage(path, command)}\n"
        own, common = [], []
        for parameter in command.params:
            if isinstance(parameter, click.Argument):
                continue
            first = shared.get(parameter.opts[0])
            same = first is not None and first.default == parameter.default
            (common if same else own).append(parameter)
        if own:
            text += "| option | meaning |\n|---|---|\n" + "".join(map(option_row, own)) + "\n"
        if common:
            text += "Shared: " + ", ".join(f"`{p.opts[0]}`" for p in common) + ".\n\n"
    return text.rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
