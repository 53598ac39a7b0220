"""Processes of ours that are forked, not executed: torch, Faust, Flower, Arrow and Delta take one
to four seconds of a core each time that they are imported.

`install` replaces `subprocess.Popen`, in this process and in all that it forks. A command of ours
(`python -m` a module of ours, `tidewheel`, and Flower's commands) is then forked by a *zygote*: a
process of one thread that has imported the heavy packages and nothing else. Every other command is
executed as always, and so is each of ours under `executed` and below a process that was executed.
With `Forked` `python -c` is forked as well: so xdist's own processes are (tests/conftest.py).

What is forked is as real as what is executed: a child of the process that starts it, which waits
for it, kills it and is survived by it; with a pid, session, files, environment, folder and command
line of its own, also in /proc. It runs the same entry point as Python does. What differs: modules
are imported already, so defects of an import are found by what is executed only; variables that
Python or a package reads at import are the zygote's; sets are ordered alike in all of them; at the
end modules are not destroyed. Where there is no Linux everything is executed.

    zygote ── middle ── child          1. the zygote forks a process, and that the child
    parent ───────────── child         2. the middle one ends: the child is its ancestor's that has
                                          asked to inherit (PR_SET_CHILD_SUBREAPER), the parent's
                          └─ zygote    3. the child forks a zygote of its own, for what it starts
"""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import os
import pickle
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
PACKAGES = ("compose", "edge_client", "examples", "federation", "streams")
FLOWER = ("flower-superlink", "flower-superexec", "flwr", "flwr-clientapp", "flwr-serverapp")
PRELOAD = (
    "torch._dynamo",  # what an optimizer of torch's and the export of a model import
    "torch._functorch.aot_autograd",
    "torch.onnx._internal.exporter._core",
    "onnxscript.function_libs.torch_lib.ops",
    "duckdb",
    "s3fs",
    "adbc_driver_postgresql.dbapi",
    "faust.tables.manager",
    "httpcore",
    "h11",
    "uvicorn",
    "streams.worker.app",
    "streams.batch.jobs.job",
    "streams.batch.jobs.job_queue",
    "streams.kafka.reader",
    "edge_client.ipc",
    "edge_client.samples.samples",
    "edge_client.sources.live",
    "edge_client.training.trainer_process",
    "edge_client.uplink.uplink",
    "edge_client.client_app",
    "edge_client.supernode",
    "flwr.cli.app",
    "flwr.supercore.cli",
    "flwr.superlink.cli",
    "flwr.supernode.cli",
    "compose.cli.edge",
    "compose.cli.flower",
    "compose.launcher.flower_processes",
    "compose.launcher.supervisor",
    "compose.reports.terminal",
    "federation.bootstrap.initial_model",
    "federation.controller.controller",
    "federation.server_app",
    "compose.launcher.up",
    "compose.console.server",
    "compose.cli.batch.submitting",
    "compose.cli.main",
)
THREADED = "onnxruntime"  # its import starts a thread, without which no process of it ends
NO_THREAD = "background_thread:false"  # jemalloc's, of Arrow and of Delta
ROOM = 1 << 13  # bytes for the command line and for the environment that /proc shows
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

_libc = ctypes.CDLL(None)
_executed = subprocess.Popen  # Python's own
_lock = threading.Lock()
_zygote: socket.socket | None = None
_first: "subprocess.Popen[bytes] | None" = None  # ends with this process


@dataclass(frozen=True)
class Start:
    """A command as the zygote gets it, with the files that belong to `numbers` beside it."""

    argv: list[str]
    environ: dict[str, str]
    cwd: str
    parent: int
    group: int
    numbers: list[int]
    before: Any  # preexec_fn
    session: bool
    blocked: set[int]


class Popen(subprocess.Popen[Any]):
    """As Python's; a command of ours is forked."""

    forks = sys.platform == "linux"
    code = False  # whether `python -c` is one of ours

    def _execute_child(self, args: Any, *more: Any) -> None:
        names = (
            "executable preexec_fn close_fds pass_fds cwd env startupinfo creationflags shell "
            "p2cread p2cwrite c2pread c2pwrite errread errwrite restore_signals gid gids uid umask "
            "start_new_session process_group"
        )
        given = dict(zip(names.split(), more, strict=True))
        start = _start(args, given, self.code) if self.forks else None
        if start is None:
            super()._execute_child(args, *more)  # type: ignore[misc]
            return
        standard = (given["p2cread"], given["c2pwrite"], given["errwrite"])
        files = [n if file == -1 else file for n, file in enumerate(standard)]
        self.pid = _fork(start, [*files, *start.numbers[3:]])
        self._child_created = True
        pipes = "p2cread p2cwrite c2pread c2pwrite errread errwrite"
        self._close_pipe_fds(*(given[name] for name in pipes.split()))  # type: ignore[attr-defined]


class Forked(Popen):
    """As Python's; `python -c` is forked, too."""

    code = True


def install() -> None:
    """Fork what this process starts from now on."""
    subprocess.Popen = Popen  # type: ignore[misc]


@contextlib.contextmanager
def executed() -> Iterator[None]:
    """Execute everything that is started inside, and so what that starts."""
    before, Popen.forks = Popen.forks, False
    try:
        yield
    finally:
        Popen.forks = before


# --- the parent ----------------------------------------------------------------------------------


def _start(args: Any, given: Mapping[str, Any], code: bool) -> Start | None:
    """What the zygote is asked for; None for what has to be executed."""
    plain = {
        "executable": None, "close_fds": True, "shell": False, "restore_signals": True,
        "gid": None, "gids": None, "uid": None, "umask": -1, "process_group": -1,
    }  # fmt: skip
    if isinstance(args, str | bytes | os.PathLike) or any(given[k] != v for k, v in plain.items()):
        return None
    environ = dict(os.environ if given["env"] is None else given["env"])
    words = [os.fsdecode(word) for word in args]
    from compose.launcher.supervisor import FOLLOW  # loads much, which not every test needs

    follows = FOLLOW in words[4:5]  # the supervisor's; a fork follows in the same way
    argv = _ours(words[6:] if follows else words, environ, code)
    cwd = os.fspath(given["cwd"] or os.curdir)
    if argv is None or not Path(cwd).is_dir() or _python(environ) != _python(os.environ):
        return None
    return Start(
        argv=argv,
        environ=environ,
        cwd=cwd if given["cwd"] is None else str(Path(cwd).absolute()),
        parent=os.getpid(),
        group=os.getpgid(0),
        numbers=[0, 1, 2, *given["pass_fds"]],
        before=_follow if follows else given["preexec_fn"],
        session=given["start_new_session"],
        blocked={int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])},
    )


def _ours(argv: list[str], environ: Mapping[str, str], code: bool) -> list[str] | None:
    """The command line of a command of ours as Python would have it; None for any other."""
    if code and argv[1:2] == ["-u"]:
        argv = [argv[0], *argv[2:]]
    if argv[0] == sys.executable and len(argv) > 2:
        module = argv[1] == "-m" and argv[2].partition(".")[0] in PACKAGES
        return argv if module or (code and argv[1] == "-c") else None
    if Path(argv[0]).name not in ("tidewheel", *FLOWER):
        return None
    found = shutil.which(argv[0], path=environ.get("PATH", os.defpath))
    if found is None or Path(found).parent != BIN:
        return None
    return [sys.executable, found, *argv[1:]]


def _python(environ: Mapping[str, str]) -> dict[str, str]:
    """What decides how Python and the loader start, but for what `_become` does itself."""
    found = {k: v for k, v in environ.items() if k.startswith(("PYTHON", "LD_"))}
    return {k: v for k, v in found.items() if k not in ("PYTHONPATH", "PYTHONUNBUFFERED")}


def _follow() -> None:
    """As the supervisor's command; that the parent is there has been looked at."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _fork(start: Start, files: list[int]) -> int:
    """Ask the zygote; the pid of the child."""
    with _lock:
        zygote = _zygote or _start_zygote()
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            socket.send_fds(zygote, [pickle.dumps(start)], files)
            answer = zygote.recv(100)
        finally:
            _libc.prctl(PR_SET_CHILD_SUBREAPER, 0)
    if not answer:
        raise RuntimeError("the zygote has ended: see the standard error of the tests")
    return int(answer)


def _start_zygote() -> socket.socket:
    """The first one, which is executed."""
    global _zygote, _first
    _zygote, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code = "from tests.rig.processes.forks import serve_first; serve_first()"
    with theirs:
        words = [sys.executable, "-c", code, str(theirs.fileno())]
        environ = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        environ |= {"JE_ARROW_MALLOC_CONF": NO_THREAD, "_RJEM_MALLOC_CONF": NO_THREAD}
        environ["TIDEWHEEL_ROOM"] = " " * ROOM
        environ.pop("PYTHONPATH", None)
        _first = _executed(
            [*words, " " * ROOM], cwd=ROOT, env=environ, pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL, process_group=0,
        )  # fmt: skip
    return _zygote


# --- the zygote ----------------------------------------------------------------------------------


def serve_first() -> None:
    """Import, then fork on request until the other end is closed."""
    sys.modules[THREADED] = None  # type: ignore[assignment]  # whose import fails
    commands = importlib.import_module("compose.cli.main").COMMANDS.values()  # imported when used
    modules = {f"compose.cli.{place.partition(':')[0]}" for place in commands}
    for name in (*PRELOAD, *sorted(modules)):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    del sys.modules[THREADED]
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "an import has started a thread"
    install()
    gc.collect()
    gc.freeze()  # what is never visited stays shared
    _serve(socket.socket(fileno=int(sys.argv[1])))


def _serve(requests: socket.socket) -> None:
    """Until the other end is closed; in a child, until it has run."""
    while True:
        message, files, _, _ = socket.recv_fds(requests, 1 << 20, 250)
        if not message:
            os._exit(0)
        pid = _fork_away(requests)
        if pid is None:
            _become(pickle.loads(message), files)
        for file in files:
            os.close(file)
        requests.send(b"%d" % pid)


def _fork_away(requests: socket.socket) -> int | None:
    """Steps 1 and 2. The child's pid; None in the child, once it has been inherited."""
    told, tell = os.pipe()
    inherited, inherit = os.pipe()
    middle = os.fork()
    if middle == 0:
        child = os.fork()
        if child:
            os.write(tell, b"%d" % child)
            os._exit(0)
        requests.close()
        for file in (told, tell, inherit):
            os.close(file)
        os.read(inherited, 1)  # until the zygote has closed its end
        os.close(inherited)
        return None
    os.waitpid(middle, 0)
    pid = int(os.read(told, 100))
    for file in (told, tell, inherited, inherit):
        os.close(file)
    return pid


# --- the child -----------------------------------------------------------------------------------


def _become(start: Start, files: list[int]) -> NoReturn:
    """Be the process that was asked for."""
    if os.getppid() != start.parent:
        os._exit(1)  # it has died meanwhile
    if start.session:
        os.setsid()
    else:
        os.setpgid(0, start.group)
    _fork_zygote(files)
    _place(files, start.numbers)
    os.chdir(start.cwd)
    os.environ.clear()
    os.environ.update(start.environ)
    _show(start)
    signal.pthread_sigmask(signal.SIG_SETMASK, start.blocked)
    if start.before is not None:
        start.before()
    if "PYTHONUNBUFFERED" in start.environ:
        for file in (sys.stdout, sys.stderr):
            file.reconfigure(write_through=True, line_buffering=True)  # type: ignore[union-attr]
    sys.path[1:1] = filter(None, start.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.modules["numpy"].random.seed()
    _end(_code_of(start.argv))


def _fork_zygote(files: list[int]) -> None:
    """Step 3."""
    global _zygote, _lock
    _lock = threading.Lock()
    _zygote, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
        return
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _zygote.close()
    for file in files:
        os.close(file)
    os.setpgid(0, 0)  # not of a group that is waited for, or gets signals
    _serve(theirs)


def _place(files: list[int], numbers: list[int]) -> None:
    """Give each file its number."""
    free = max(*numbers, *files) + 1
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, free) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(moved, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)


def _show(start: Start) -> None:
    """Write the command line and the environment where /proc reads them."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    words = [f"{name}={value}" for name, value in start.environ.items()]
    for begin, end, texts in ((45, 46, start.argv), (47, 48, words)):
        at, size = int(fields[begin]), int(fields[end]) - int(fields[begin])
        text = b"".join(os.fsencode(word) + b"\0" for word in texts)[: size - 1]
        ctypes.memset(at, 0, size)
        ctypes.memmove(at, text, len(text))


def _code_of(argv: list[str]) -> int:
    """Run a command line; its exit code."""
    try:
        _run(argv)
    except SystemExit as exc:
        if exc.code is None or isinstance(exc.code, int):
            return exc.code or 0
        print(exc.code, file=sys.stderr)  # noqa: T201
        return 1
    except Exception:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """As Python does it, without the destruction of all modules: a third of a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            file.flush()
    os._exit(code)


def _run(argv: list[str]) -> None:
    """As Python does it."""
    sys.orig_argv = argv
    main = ModuleType("__main__")
    sys.modules["__main__"] = main
    if argv[1] == "-m":
        sys.argv = ["-m", *argv[3:]]
        sys.path[0] = str(Path.cwd())
        sys.modules.pop(argv[2], None)
        runpy._run_module_as_main(argv[2])  # type: ignore[attr-defined]
        return
    code = argv[1] == "-c"
    sys.argv = ["-c", *argv[3:]] if code else argv[1:]
    sys.path[0] = "" if code else str(Path(argv[1]).parent)
    text = argv[2] if code else Path(argv[1]).read_text()
    exec(compile(text, "<string>" if code else argv[1], "exec"), vars(main))
