"""Where jobs are in the queue."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compose.reports.terminal import moment
from streams.batch.jobs.job_folder import now_us
from streams.batch.queue.entries import Entry
from streams.batch.queue.job_queue import JobQueue


@dataclass(frozen=True)
class Place:
    """A job's place in the queue: `position` counts those that wait, from 1."""

    entry: Entry
    position: int | None


def places_of(state: Path) -> dict[str, Place]:
    """Return the queued jobs of a state folder by their ids, in the queue's order."""
    found: dict[str, Place] = {}
    position = 0
    for entry in JobQueue(state).entries():
        position += entry.waits
        found[entry.id] = Place(entry, position if entry.waits else None)
    return found


def queue_row(place: Place | None) -> dict[str, Any] | None:
    """Return a job's place in the queue as JSON has it."""
    if place is None:
        return None
    entry = place.entry
    return {
        "position": place.position,
        "priority": entry.priority,
        "attempts": entry.attempts,
        "failures": entry.failures,
        "next_try_us": entry.next_us or None,
        "expires_us": entry.expires_us,
        "runner": entry.runner,
        "reason": entry.reason,
    }


def told(row: dict[str, Any] | None) -> str:
    """Return a job's place in the queue for a person."""
    if row is None:
        return ""
    if row["runner"]:
        return f"  attempt {row['attempts']} by {row['runner']}"
    parts = [f"position {row['position']}"]
    if row["priority"]:
        parts.append(f"priority {row['priority']}")
    if row["attempts"]:
        parts.append(f"{row['attempts']} attempts")
    if (row["next_try_us"] or 0) > now_us():
        parts.append(f"next try {moment(row['next_try_us'])}")
    reason = f": {row['reason']}" if row["reason"] else ""
    return "  " + ", ".join(parts) + reason


def not_submitted(place: Place) -> dict[str, Any]:
    """Return the row of a scheduled job that has no specification yet."""
    entry = place.entry
    words = entry.options.words or []
    return {
        "id": entry.id,
        "state": "Scheduled",
        "reason": entry.reason,
        "task": words[0] if words else "",
        "model": "",
        "job": entry.folder,
        "output": "",
        "total": 0,
        "processed": 0,
        "created_us": entry.submitted_us,
        "running": False,
        "queue": queue_row(place),
    }
