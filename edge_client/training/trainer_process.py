"""The trainer: a child process of the agent with torch, the model and the device's samples.

    python -m edge_client.training TASK FD     (__main__.py)

FD is its end of a socket pair. A request is a frame (ipc.py) with a TrainerJob as header and the
received weights as body; the reply is a WorkReply with the new weights. It ends when the agent
closes the socket, or after IDLE_S without work. Weights are blocks of
streams.contract.weights.payload.
"""

import contextlib
import math
import resource
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import safetensors.numpy
import torch

from edge_client.ipc import receive_frame, send_frame
from edge_client.samples.table import read_all
from edge_client.training import adapter_fit, local_layers
from streams.contract.errors import TidewheelError
from streams.contract.task import MINIMUM_SAMPLES, Task, learns, load_task
from streams.contract.task.metrics import counts_rows, metric_of, top, value
from streams.contract.weights import payload
from streams.contract.weights.part import SUFFIX, Part, Tensors
from streams.contract.work import (
    COMPARED,
    CONFUSED,
    METRIC,
    METRIC_BASE,
    PART,
    PERSONAL,
    TrainerJob,
    WorkReply,
    class_prefix,
)
from streams.learning import learning
from streams.learning.factors import add_factors, is_linear
from streams.learning.updates import SHARE, clipped, interpolated

EVALUATED = 1024  # rows, where there is memory for them
AUTOGROUP = Path("/proc/self/autogroup")
IDLE_S = 30.0  # a round, or a comparison with the next version, may follow soon


def rows_at_once(
    task: Task, model: torch.nn.Module, factors: Tensors, *, trains: bool
) -> int | None:
    """Return how many rows are in memory at a time, so that the process stays within
    `Training.memory_mb`; None for any number. Less than 1: not even one fits.

    Beside the rows there are, of what learns, the gradients, the optimizer's state, the weights
    that `proximal` keeps, and twice the update, and of most weights with a factor the sum and its
    gradient; or for an evaluation the compared weights.
    """
    limit = 1_000_000 * task.training.memory_mb
    if not limit:
        return None
    sizes = {name: p.nbytes for name, p in model.named_parameters()}
    learned = sum(size for name, size in sizes.items() if learns(name, task.training))
    learned += sum(factor.nbytes for factor in factors.values())
    copies = 4 + (task.training.proximal > 0) + (task.training.optimizer == "adamw")
    weights = [name.removesuffix(SUFFIX) for name in factors]
    modules = {name: model.get_submodule(name.rpartition(".")[0]) for name in weights}
    sums = 2 * sum(sizes[name] for name in weights if not is_linear(modules[name]))
    fixed = copies * learned + sums if trains else 4 * sum(sizes.values())
    row = learning.bytes_per_row(model, np.zeros((2, *task.segment_shape), np.float32))
    return int((limit - psutil.Process().memory_info().rss - fixed) // row)


class Rows:
    """A device's training and held-out rows, of which `at_once` are evaluated together."""

    def __init__(self, path: Path, at_once: int | None = None) -> None:
        self.at_once = max(1, min(at_once or EVALUATED, EVALUATED))
        rows, names = read_all(path), ("segment", "label", "weight", "held_out", "true")
        segments, labels, weights, held, true = (rows[name] for name in names)
        self.train = segments[~held], labels[~held], weights[~held]
        self.held_out = segments[held], labels[held]
        self.true_labels = int((true & ~held).sum())


def evaluate(task: Task, model: torch.nn.Module, rows: Rows) -> dict[str, float]:
    """Return how many of the held-out rows the model answers correctly, and the task's metric."""
    segments, labels = rows.held_out
    if not len(segments):
        return {"evaluated": 0.0, "correct": 0.0}
    outputs = learning.predict(model, segments, rows.at_once)
    right = task.correct(outputs, labels)
    counts = {"evaluated": float(len(segments)), "correct": float(right.sum())}
    return counts | _metric(task, {METRIC: outputs}, labels)


def _metric(task: Task, outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """Return the task's metric by name; nothing where it is of right answers, which are counted, or
    is not defined for these labels."""
    if counts_rows(task):
        return {}
    metric = metric_of(task)
    found = {name: value(task, metric, each, labels) for name, each in outputs.items()}
    return found if all(math.isfinite(each) for each in found.values()) else {}


def compare(
    task: Task, outputs: tuple[np.ndarray, np.ndarray], labels: np.ndarray
) -> dict[str, float]:
    """Return the metrics of the served version and of another by their outputs for the held-out
    rows, see streams.contract.work.

    With differential privacy there are no metrics per class, because they reveal how many rows of a
    class the device has.
    """
    if not len(labels):
        return {"evaluated": 0.0, "correct": 0.0}
    base, right = (task.correct(each, labels) for each in outputs)
    found = _paired("", base, right)
    found |= _metric(task, {METRIC_BASE: outputs[0], METRIC: outputs[1]}, labels)
    if not task.classes or task.training.privacy is not None or top(task.metric) > 1:
        return found
    classes, answers = labels[:, 0].astype(np.int64), [task.answers(each) for each in outputs]
    for index in np.unique(np.concatenate([classes, *answers])):
        of, prefix = classes == index, class_prefix(index)
        found |= _paired(prefix, base[of], right[of])
        for name, answer in zip(CONFUSED, answers, strict=True):
            found[prefix + name] = float((answer[~of] == index).sum())
    return found


def _against_served(
    task: Task,
    job: TrainerJob,
    model: torch.nn.Module,
    part: Part,
    learned: Tensors,
    rows: Rows,
) -> dict[str, float]:
    """Return the metrics of what was learned beside the served weights, and of what is at `SHARE`
    of the way, see streams.contract.work. `model` answers with each in turn."""
    segments, labels = rows.held_out

    def answered(weights: Tensors) -> np.ndarray:
        loaded = learning.load_state(model, weights)
        return learning.predict(loaded, segments, rows.at_once) if len(labels) else labels

    before = {**part.weights, **part.first}
    first = {name: before[name] for name in learned}
    between = interpolated(first, learned, SHARE)
    between = payload.round_candidate(between, first, job.request.payload)
    base, whole = answered(part.weights), answered(part.whole(learned))
    prefixed = compare(task, (base, answered(part.whole(between))), labels)
    found = compare(task, (base, whole), labels)
    return found | {PART + name: value for name, value in prefixed.items()}


def _paired(prefix: str, base: np.ndarray, right: np.ndarray) -> dict[str, float]:
    parts = (np.ones(len(right), np.bool_), right, base, right & ~base, base & ~right)
    return {prefix + name: float(rows.sum()) for name, rows in zip(COMPARED, parts, strict=True)}


def work(task: Task, job: TrainerJob, block: bytes) -> tuple[WorkReply, bytes]:
    """Run one request: evaluate the received weights, and for "train" fine-tune them. What was not
    sent is the base's."""
    request = job.request
    learned = payload.to_float32(payload.unpack(block))
    served = payload.to_float32(safetensors.numpy.load_file(job.served)) if job.served else learned
    part = Part(replace(task.training, payload=request.payload), request.base, served)
    model = learning.load_state(learning.build_model(task), part.whole(learned))
    trains = request.op != "evaluate"
    factors = {name: t for name, t in {**part.first, **learned}.items() if name.endswith(SUFFIX)}
    at_once = rows_at_once(task, model, factors, trains=trains)
    if trains and at_once is not None and at_once < 1:
        text = f"not one row fits into {task.training.memory_mb} MB beside the model"
        return WorkReply(device=job.device, base=request.base, error=f"memory: {text}"), b""
    if request.op == "adapt":
        return adapter_fit.adapted(task, job, model, at_once)
    rows = Rows(Path(job.samples), at_once)
    if request.op == "evaluate" and job.served:
        metrics = _against_served(task, job, model, part, learned, rows)
    else:
        metrics = evaluate(task, model, rows)
    reply = WorkReply(device=job.device, base=request.base, metrics=metrics)
    if request.op == "evaluate":
        return reply.replace(samples=int(metrics["evaluated"])), b""
    samples = len(rows.train[0])
    if samples < MINIMUM_SAMPLES:
        text = f"{samples} samples with a label that counts, {MINIMUM_SAMPLES} are needed"
        return reply.replace(error=f"too-few-samples: {text}"), b""
    if request.run != PERSONAL and learned.keys() != part.first.keys():
        text = "train_only, lora and shared differ from the server's: update the task file"
        return reply.replace(error=f"other-part: {text}"), b""
    return _trained(task, job, model, part, learned, factors, rows, reply, at_once)


def _trained(
    task: Task,
    job: TrainerJob,
    model: torch.nn.Module,
    part: Part,
    received: Tensors,
    factors: Tensors,
    rows: Rows,
    reply: WorkReply,
    at_once: int | None,
) -> tuple[WorkReply, bytes]:
    """Fine-tune the received weights; `reply` has the metrics of their evaluation."""
    request, metrics = job.request, dict(reply.metrics)
    segments, labels, row_weights = rows.train
    started, should_stop = time.monotonic(), adapter_fit.end_of(job)
    start = part.whole({name: t for name, t in received.items() if name not in factors})
    start |= local_layers.read(task, Path(job.own), start)
    learning.load_state(model, start)
    add_factors(model, factors, request.base)
    personal = request.run == PERSONAL
    mine = replace(task, augment=None) if personal else task
    with learning.rows_used(model) as used:
        fitted = learning.fit(
            model,
            len(segments),
            learning.segment_loss(mine, model, segments, labels, row_weights),
            epochs=request.epochs,
            batch_size=request.batch_size,
            learning_rate=request.learning_rate,
            seed=request.seed,
            optimizer=task.training.optimizer,
            proximal=task.training.proximal,
            train_only=(*task.training.train_only, *factors),
            # `clipped` puts the received statistics back: weights must be trained for those.
            keep_statistics=task.training.privacy is not None and not personal,
            at_once=at_once,
            should_stop=should_stop,
        )
    if not fitted.steps:
        text = f"no step was taken in {time.monotonic() - started:.1f} s"
        return reply.replace(error=f"stopped: {text}"), b""
    if math.isfinite(fitted.loss):  # JSON has no NaN; the server sees it in the weights
        metrics["loss"] = fitted.loss
    metrics |= {
        "steps": float(fitted.steps),
        "seconds": time.monotonic() - started,
        "true_labels": float(rows.true_labels),
    }
    trained = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for name in used.keys() & trained.keys():  # weight decay moves rows that no sample used
        trained[name][~used[name]] = start[name][~used[name]]
    if personal:
        trained = part.whole(trained)
    else:  # it leaves the device
        local_layers.save(task, Path(job.own), trained)
        trained = {name: trained[name] for name in received}
        if (privacy := task.training.privacy) is not None:
            trained = clipped(trained, received, privacy.clip)
    private = task.training.privacy is not None  # its norm must not grow
    block = payload.encode_update(
        trained, received, request.payload, learning.half, grid=not private
    )
    metrics["memory_mb"] = _peak_mb()
    return reply.replace(samples=len(segments), metrics=metrics), block


def _peak_mb() -> float:
    """Return the most memory that this process had. On Linux not by getrusage, whose figure begins
    with that of the process that started it."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 / 1e6 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def give_way(low: bool) -> None:
    """Let all other processes go first, or no longer: what a device trains for itself can wait, a
    round cannot. Where cores are shared between sessions (autogroup in sched(7)) `nice` counts only
    inside this process's own one."""
    with contextlib.suppress(OSError):  # another system
        for _ in range(3):
            with contextlib.suppress(BlockingIOError):  # two changes within .1 s
                AUTOGROUP.write_text("19" if low else "0")
                return
            time.sleep(0.1)


def serve(reference: str, fd: int) -> None:
    """Serve requests until the agent closes the socket or nothing comes for IDLE_S."""
    torch.set_num_threads(1)
    task = load_task(reference)
    with socket.socket(fileno=fd) as connection:
        connection.settimeout(IDLE_S)
        while True:
            try:
                header, block = receive_frame(connection)
            except (TimeoutError, TidewheelError, OSError):
                return
            job = TrainerJob.decode(header)
            give_way(job.request.run == PERSONAL)
            try:
                reply, body = work(task, job, block)
            except Exception as exc:  # from the server's input or the task's code
                text = f"{type(exc).__name__}: {exc}".splitlines()[0][:300]
                reply, body = WorkReply(device=job.device, error=text), b""
            connection.settimeout(None)
            try:
                send_frame(connection, reply.encode(), body)
            except OSError:  # the agent has ended
                return
            connection.settimeout(IDLE_S)
