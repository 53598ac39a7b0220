"""A device's SuperExec: Flower's own, except that it forks its ClientApps.

    python -m edge_client.superexec OPTIONS     those of `flower-superexec`; a SuperNode starts it

Flower starts `flwr-clientapp` for every message, which takes more than a second of a core until it
has imported what it needs. Here this has been imported once, and a message gets a fork, which runs
the same entry point and ends with its reply: nothing of it is left for the next. The token of its
task is handed over in memory, not on a command line. No other kind of task is run.

A fork that is killed leaves no reply, and Flower would wait a minute for its heartbeat. So its task
is reported as failed at the next poll, and the SuperNode (edge_client.supernode) answers the
message with Flower's error for a ClientApp that crashed.

A fork of a process with threads may inherit a lock that nobody opens again, so this one has a
single thread: it looks itself, at each poll, whether its SuperNode is still there.
"""

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

log = logging.getLogger("flwr")  # where the SuperExec's own lines are


class Forking:
    """An executor of Flower's that runs each task in a fork of this process."""

    def __init__(
        self, client_app: str, failed: Any, accepted: Any, killed: Callable[[Any, str], None]
    ) -> None:
        """client_app: Flower's kind of task; failed, accepted: makers of its results; killed:
        reports a task whose fork was killed, and why."""
        self._client_app, self._failed, self._accepted = client_app, failed, accepted
        self._killed = killed
        self._tasks: dict[int, Any] = {}  # by process
        self._parent: int | None = None

    def watch(self, parent: int) -> None:
        """End this process once it is no longer the child of `parent`."""
        self._parent = parent

    def get_eligible_capacity(self, types: set[Any], **_: Any) -> tuple[set[Any], set[str]]:
        return {kind for kind in types if kind == self._client_app}, set()

    def launch(self, spec: Any) -> Any:
        """Fork a ClientApp for a task."""
        if spec.task_type != self._client_app:
            return self._failed(f"a device runs no {spec.task_type}")
        if not (pid := os.fork()):
            _become(spec)
        self._tasks[pid] = spec
        return self._accepted()

    def reconcile(self) -> None:
        """Take the ends of forks, and report those that were killed; called at each poll."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                spec = self._tasks.pop(pid, None)
                if spec is not None and os.WIFSIGNALED(status):
                    number = os.WTERMSIG(status)
                    self._killed(spec, f"the ClientApp was killed by signal {number}")
        if self._parent is not None and os.getppid() != self._parent:
            signal.raise_signal(signal.SIGINT)

    def close(self) -> None:
        """Forks end by themselves: each watches this process."""


def _become(spec: Any) -> NoReturn:
    """Run a task in a fork, and end it."""
    code = 1
    try:
        from flwr.supercore.exit import exit_handler
        from flwr.supernode.runtime.run_clientapp import run_clientapp

        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            signal.signal(each, signal.SIG_DFL)
        exit_handler.registered_exit_handlers.clear()  # those are the SuperExec's
        run_clientapp(
            spec.runtime_api_address, spec.token, spec.insecure, _certificates(spec),
            spec.parent_pid,
        )  # fmt: skip
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def report_failure(spec: Any, why: str) -> None:
    """Tell the SuperNode that a task has failed, in the place of its fork; one attempt."""
    from flwr.supercore.interceptors import (
        RuntimeTokenHttpInterceptor,
        RuntimeVersionHttpInterceptor,
    )
    from flwr.supercore.retry import make_simple_http_retry_invoker
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supernode.runtime import run_clientapp

    log.warning("%s", why)
    once = make_simple_http_retry_invoker()
    once.max_tries = 1
    name = RuntimeVersionHttpInterceptor(component_name="flwr-clientapp")
    client = RuntimeHttpClient.from_server_address(
        server_address=spec.runtime_api_address,
        insecure=spec.insecure,
        root_certificates=_certificates(spec),
        interceptors=[name, RuntimeTokenHttpInterceptor(spec.token)],
        retry_invoker=once,
    )
    try:
        failed = vars(run_clientapp)["SubStatus"].FAILED
        run_clientapp.push_task_output(client, None, failed, why)
    except Exception as exc:  # Flower notices it later, by itself
        log.warning("the SuperNode was not told: %s", exc)
    finally:
        client.close()


def _certificates(spec: Any) -> bytes | None:
    from flwr.supercore.tls import validate_and_resolve_root_certificates

    found = validate_and_resolve_root_certificates(spec.root_certificates_path, spec.insecure)
    return None if found is None else bytes(found)


def main() -> None:
    """Run Flower's SuperExec with forks."""
    import flwr.supernode.runtime.run_clientapp  # noqa: F401  # for the forks
    from flwr.supercore.cli.flower_superexec import flower_superexec
    from flwr.supercore.constant import TaskType
    from flwr.supercore.superexec import run_superexec
    from flwr.supercore.superexec.executor import LaunchResult

    import edge_client.client_app  # noqa: F401  # for the forks

    forking = Forking(
        TaskType.CLIENT_APP, LaunchResult.failed, LaunchResult.accepted, report_failure
    )
    vars(run_superexec)["get_executor"] = lambda *_args, **_named: forking
    vars(run_superexec)["start_parent_process_monitor"] = forking.watch
    flower_superexec()


if __name__ == "__main__":
    main()
