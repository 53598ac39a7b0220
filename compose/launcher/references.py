"""Naming a task so that processes in other folders find it."""

from pathlib import Path


def absolute_reference(reference: str) -> str:
    """The same task named so that processes in other folders find it."""
    location, colon, attribute = reference.rpartition(":")
    path = Path(location)
    return f"{path.resolve()}:{attribute}" if colon and path.suffix == ".py" else reference
