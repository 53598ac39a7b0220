"""A device's SuperNode: it joins a SuperLink, answers messages with its ClientApp, and leaves.

    python -m edge_client.supernode SETTINGS      JSON (`NodeSettings`); the agent starts it
                                                  (participation.py)

It speaks Flower's fleet protocol by Flower's own client. What Flower's SuperNode has beside that is
left out: no bundle is fetched or installed, no SuperExec runs beside it, and the ClientApp is
called in this process, which only hands work to the agent. So the code that runs is the device's
own, whatever the SuperLink sends, and an invited one answers the messages of its run alone.

    1 register (without a key), activate; tell the agent the node's ID
    2 ask for a message every `pull_s`
    3 fetch its parts, confirm it; refuse it if it is another run's
    4 call the ClientApp, send its reply, go on with 2
    5 at SIGTERM, or when the pipe from the agent is closed: deactivate, unregister, end

Killed in 1 to 4 the SuperLink knows the node as online until its heartbeat is missing, up to a
minute; a message that was confirmed is not answered then. The agent starts another one while its
invitation holds; one with a key is let in again after that minute.
"""

import contextlib
import logging
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm

from edge_client.ipc import ask
from streams.contract.documents import Document
from streams.contract.errors import ProcessFailed, Retryable, TidewheelError, UsageError, line_of
from streams.contract.invitations import PullSeconds
from streams.contract.work import AgentRequest
from streams.runtime.process import configure_logging

PULL_S = 1.0
AGAIN_S, CAP_S = 0.1, 0.4  # until a message is asked for again that is still being sent, at most
NOT_ADMITTED = 412  # of Flower, for a node whose key it does not know, or that is online
SERVER_ERROR = 500  # and above
FOREIGN = "it is a message of another run than this device was invited to"

log = logging.getLogger("tidewheel.supernode")


class NodeSettings(Document):
    """`runs`: the runs that are answered, empty for any. `ca` and `key` are paths, "" for no TLS
    and no key. `pull_s`: seconds between two requests for messages."""

    device: str
    agent: str
    superlink: str
    runs: list[int] = []
    ca: str = ""
    key: str = ""
    pull_s: PullSeconds = PULL_S


def command(settings: NodeSettings) -> list[str]:
    """Return the command line of a SuperNode's process."""
    return [sys.executable, "-m", "edge_client.supernode", settings.encode().decode()]


def serve(settings: NodeSettings) -> None:
    """Run steps 1 to 5 until SIGTERM; raise UsageError if Flower or a file is missing,
    ProcessFailed if the SuperLink does not admit the device, Retryable if it has an error."""
    with contextlib.ExitStack() as stack:
        try:
            link = stack.enter_context(_connection(settings))
        except SystemExit as exc:  # Flower's, with the cause in five lines
            if not exc.code:
                raise
            raise _refusal(exc.__context__, settings) from None
        node, receive, send, _run, _fab, pull_object, push_object, confirm = link
        log.info("%s: node %d at %s", settings.device, node, settings.superlink)
        _announce(settings, node=node)
        while True:
            found = _ask(receive)
            if found is None:
                time.sleep(settings.pull_s)
                continue
            began = time.monotonic()
            message, parts = found
            message = _fetch(message, parts, pull_object, confirm)
            if message is not None:
                reply = _answer(settings, node, message)
                _send(reply, send, push_object, time.monotonic() - began)


def _connection(settings: NodeSettings) -> AbstractContextManager[Any]:
    """Return Flower's connection to the SuperLink, which is made when it is entered."""
    try:
        from flwr.supernode.fleet_http_connection import http_request_response
    except ImportError as exc:
        advice = "pip install 'tidewheel[edge-train]'"
        raise UsageError(f"a SuperNode needs Flower: {advice} ({exc})") from exc
    certificates, keys = files_of(settings.ca, settings.key)
    return http_request_response(settings.superlink, certificates is None, certificates, keys)


def _refusal(cause: BaseException | None, settings: NodeSettings) -> TidewheelError:
    """Return why Flower did not connect, and what to do."""
    where, status, text = f"the SuperLink at {settings.superlink}", _status(cause), str(cause)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        why = text.partition("failed: ")[2].partition(" (_ssl")[0]
        advice = f"{settings.ca} is of another CA: pass that of the SuperLink as --superlink-ca"
        advice = "use an address that is in it" if "mismatch" in why else advice
        advice = "renew it" if "expired" in why else advice
        advice = "set this device's clock" if "not yet" in why else advice
        return ProcessFailed(f"the certificate of {where} is not trusted ({why}): {advice}")
    if status is None:  # nothing says that it lasts
        return Retryable(f"no connection to {where}: {line_of(cause) if cause else 'no answer'}")
    if status != NOT_ADMITTED:
        kind = ProcessFailed if status < SERVER_ERROR else Retryable
        return kind(f"{where} refuses: {[*text.splitlines(), ''][0]}")
    if not settings.key:
        advice = "this device has none: pass --node-key"
        return ProcessFailed(f"{where} admits registered keys alone, and {advice}")
    return ProcessFailed(
        f"{where} does not admit the key {settings.key}: it was not added (`tidewheel node add "
        f"{settings.device}`), or was removed, and then the device needs another key; after a kill "
        "it is admitted again within a minute"
    )


def _status(exc: BaseException | None) -> int | None:
    """Return the status of the answer that is the cause; None if there was none."""
    return getattr(getattr(exc, "response", None), "status_code", None)


def files_of(ca: str, key: str) -> tuple[bytes | None, Any]:
    """Return the CA's certificate and the node's pair of keys that are in these files, None for ""
    each; raise UsageError if one cannot be used."""
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from cryptography.x509 import load_pem_x509_certificates

    named, certificate, private = f"--superlink-ca {ca}", None, None
    advice = "pass the certificate of the SuperLink's CA (PEM)"
    try:
        if ca:
            certificate = Path(ca).read_bytes()
            load_pem_x509_certificates(certificate)
        named, advice = f"--node-key {key}", "pass an OpenSSH private key that has no password"
        if key:
            private = load_ssh_private_key(Path(key).read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise UsageError(f"{named} cannot be read ({line_of(exc)}): {advice}") from exc
    return certificate, (private, private.public_key()) if private else None


def _announce(settings: NodeSettings, node: int | None = None, error: str | None = None) -> None:
    """Send the agent the node that its device is, or why it is none; `fleet` has it from there."""
    try:
        ask(Path(settings.agent), AgentRequest(op="joined", node=node, error=error))
    except Retryable as exc:
        log.warning("%s", exc)


def _ask(receive: Callable[[], Any]) -> Any:
    """Step 2; None also where the SuperLink has an error of its own, as many requests at a time
    give it."""
    try:
        return receive()
    except Exception as exc:
        status = _status(exc)
        if status is None or status < SERVER_ERROR:
            raise
        log.warning("the SuperLink answers with error %d; asking again", status)
        return None


def _fetch(
    message: Any, tree: Any, pull_object: Callable[..., bytes], confirm: Callable[..., None]
) -> Any:
    """Step 3: return the message with its content; None if its run is over. The server sends the
    message itself last, so that is asked for until it is there."""
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
    from flwr.supercore.inflatable.inflatable_utils import (
        ObjectPullError,
        inflate_object_from_contents,
        pull_objects,
    )
    from flwr.supercore.run import RunNotRunningException

    run = message.metadata.run_id
    *parts, last = [part.object_id for part in iterate_object_tree(tree)]
    asked = partial(
        pull_objects, pull_object_fn=partial(pull_object, run), initial_backoff=AGAIN_S,
        backoff_cap=CAP_S, max_tries_per_object=None,
    )  # fmt: skip
    try:
        contents = asked([last]) | asked(parts)
        confirm(run, last)
    except (RunNotRunningException, ObjectPullError) as exc:
        log.info("a message of run %d is left: %s", run, exc)
        return None
    found: Any = inflate_object_from_contents(last, contents)
    vars(found.metadata)["_message_id"] = tree.object_id  # the content has no ID of its own
    return found


def _answer(settings: NodeSettings, node: int, message: Any) -> Any:
    """Step 4: return the reply of the ClientApp, or an error if the run is another one."""
    from flwr.app import Context, Error, Message, RecordDict
    from flwr.common.constant import ErrorCode

    from edge_client.client_app import app

    run = message.metadata.run_id
    if settings.runs and run not in settings.runs:
        log.error("a message of run %d is refused: %s", run, FOREIGN)
        return Message(Error(ErrorCode.INVALID_FAB, FOREIGN), reply_to=message)
    given: dict[str, Any] = {"device": settings.device, "socket": settings.agent}
    context = Context(run, node, given, RecordDict(), {})
    try:
        return app(message, context)
    except Exception as exc:  # a kind of message that the app does not know
        log.error("a message of run %d is refused: %r", run, exc)
        code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        return Message(Error(code, repr(exc)[:300]), reply_to=message)


def _send(
    reply: Any, send: Callable[..., Any], push_object: Callable[..., None], took_s: float
) -> None:
    """Send a reply and its parts; what was sent already is not sent again."""
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
        no_object_id_recompute,
    )
    from flwr.supercore.inflatable.inflatable_utils import ObjectPushError, push_objects
    from flwr.supercore.run import RunNotRunningException

    run = reply.metadata.run_id
    vars(reply.metadata)["_message_id"] = reply.object_id
    try:
        with no_object_id_recompute():
            tree, parts = get_object_tree(reply), get_all_nested_objects(reply)
            missing, session = send(reply, tree, took_s)
            push_objects(parts, partial(push_object, run, session), object_ids_to_push=missing)
    except (RunNotRunningException, ObjectPushError) as exc:
        log.info("a reply to run %d is not sent: %s", run, exc or type(exc).__name__)


def end_with_input() -> None:
    """End this process as by SIGTERM when its input, where that is a pipe, is closed: the agent has
    ended."""
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="agent", daemon=True).start()


def run(settings: NodeSettings) -> None:
    """Serve until SIGTERM or SIGINT, as a process of its own."""

    def leave(*_: object) -> None:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request
    end_with_input()
    try:
        serve(settings)
    except TidewheelError as exc:
        if not isinstance(exc, Retryable):
            _announce(settings, error=f"cannot join runs: {exc}")
        raise


def main() -> None:
    configure_logging("INFO")
    settings = NodeSettings.decode(sys.argv[1].encode())
    try:
        run(settings)
    except TidewheelError as exc:
        log.error("%s cannot join: %s", settings.device, exc)
        sys.exit(exc.exit_code)


if __name__ == "__main__":
    main()
