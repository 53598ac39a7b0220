"""Support for long-running processes.

files (atomic writes; files in a folder or a bucket, also for Arrow), trust (Ed25519 keys on disk,
and the signed decisions that a process accepts, persisted), health (metrics, readiness and liveness
over HTTP on loopback), tracing (spans to a collector, if one is set), process (its log, signals,
its end, memory that only a start needs), failpoints (crash at a numbered step, for tests).

Knows streams.contract alone.
"""

from typing import Any


def option(text: str, metavar: str | None = None, name: str | None = None, **bounds: Any) -> Any:
    """Return what a field of settings is annotated with that is an option of a command as well: the
    option's help, what stands for a value there, its name if that is not the field's, and bounds
    (`ge`, `le`)."""
    from msgspec import Meta  # a built-in task's file imports this package

    return Meta(description=text, extra={"metavar": metavar, "name": name, **bounds})
