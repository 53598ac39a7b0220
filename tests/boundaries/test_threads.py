"""A thread of ours has no method that a `Thread` of another Python hides: 3.13 sets `_handle` on
each, and an agent there ended with the first request on its socket."""

import importlib
import threading

import pytest

LATER = {"_handle", "_os_thread_handle", "_context", "_tstate_lock"}  # of Python 3.11 to 3.14
THREADS = {
    "streams.worker.teacher_source": "TeacherSource",
    "streams.worker.store.maintenance": "Maintenance",
    "streams.kafka.artifact_download": "_UrlDownload",
    "edge_client.downlink": "Downlink",
    "edge_client.spool.writer": "SpoolWriter",
    "edge_client.ipc": "SocketServer",
    "edge_client.uplink.uplink": "Uplink",
    "edge_client.samples.labels": "DelayedLabels",
    "compose.reports.follower": "Following",
    "compose.console.watch": "Watch",
    "federation.controller.tracking": "Tracker",
}


@pytest.mark.parametrize(("module", "name"), THREADS.items())
def test_a_thread_of_ours_defines_nothing_that_threads_have_of_their_own(
    module: str, name: str
) -> None:
    own = vars(getattr(importlib.import_module(module), name)).keys()
    assert own & (LATER | vars(threading.Thread()).keys()) == set()


def test_all_threads_of_ours_are_looked_at() -> None:
    for module in THREADS:
        importlib.import_module(module)
    found = {(c.__module__, c.__name__) for c in threading.Thread.__subclasses__()}
    rooms = ("streams.", "edge_client.", "federation.", "compose.")
    assert {f for f in found if f[0].startswith(rooms)} <= set(THREADS.items())
