"""What has to be there."""

from typing import TypeVar

T = TypeVar("T")


def unwrap(value: T | None) -> T:
    """Return a value that is not None, which the test says of it."""
    assert value is not None
    return value
