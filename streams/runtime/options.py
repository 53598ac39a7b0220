"""Settings that are options of a command line are declared once, where a process reads them."""

from typing import Any

from msgspec import Meta


def option(text: str, metavar: str | None = None, name: str | None = None, **bounds: Any) -> Any:
    """Return what a field is annotated with: the help of its option, what stands for a value there,
    its name if that is not the field's, and bounds (`ge`, `le`)."""
    return Meta(description=text, extra={"metavar": metavar, "name": name, **bounds})
