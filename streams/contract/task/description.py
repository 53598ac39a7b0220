"""A task as users write it."""

from dataclasses import dataclass

from streams.contract.errors import TaskError
from streams.contract.task.fields import TaskFields
from streams.contract.task.validation import problem_of


@dataclass(frozen=True)
class Task(TaskFields):
    """What a fleet learns. Exactly one of `classes` and `targets` is given.

    name, version    the task's identity; another version is another task, with its own first model,
                     topics and state folder
    channels         names of the values of a reading
    rate_hz          readings a second; None where they come at no fixed rate
    segment          how readings are cut
    build_model      () -> module: (batch, channels, samples) -> (batch, outputs)
    build_teacher    () -> module: (batch, segments, channels, samples), and a mask
                     (batch, segments) of the segments that exist -> (batch, segments, outputs);
                     None: the teacher answers each segment by itself
    readings         (device) -> iterable of Reading, or of Readings: many as arrays
    source           "recorded": `readings` is a recording, replayed at any speed and repeated;
                     "live": a sensor, taken as it comes
    max_gap_s        the longest time between two readings of one segment, seconds;
                     None: 2.5 sample periods, or any time where `rate_hz` is None
    devices          () -> all Devices
    outcomes         (device, iterator of Answered) -> iterable of Outcome: labels that become
                     known later; it runs on a thread of its own
    augment          (batch of segments, generator) -> batch: only in training
    window_s         length of a tumbling window of event time, seconds
    lateness_s       how long after its end a window stays open for late events, seconds
    idle_close_s     a silent device's windows are closed after this wall time, seconds
    upload           "segment", or "prediction": raw data never leaves the device
    upload_dtype     type of the segments that leave the device; float16 halves them
    tolerance        regression: answers within it count as agreeing, and as correct
    metric           what candidates are judged by, what starts runs, and what tables show:
                     accuracy, balanced_accuracy, macro_f1, auc or average_precision; for targets
                     mae, rmse, r2 or within; or a Metric. "": accuracy, for targets mae
    retrain          what starts a run: the share of answers that agree with the teacher, or with
                     the labels, is below it; where windows tell an error, that is above it. None:
                     a share of 0.9, a Brier distance of 0.05, an error of half of `tolerance`
    margin           by how much a candidate must be better than the served version in that metric:
                     of scores the difference, of errors the share by which they shrink
    threshold        of two classes: an answer is the second one where its softmax is at least this
    latency_budget_ms  99th percentile of an answer, milliseconds; None: the time between segments
    training         how devices, first model and teacher are trained

    Raises TaskError for the first field that cannot be right.

    >>> from tidewheel import Device, Reading, Segment, Task
    >>> def readings(device):
    ...     return (Reading(i * 10_000, (float(i % 2), 0.0), label=i % 2) for i in range(1000))
    >>> task = Task(
    ...     name="demo", version=1, channels=("x", "y"), rate_hz=100,
    ...     segment=Segment(samples=20, hop=10), classes=("low", "high"),
    ...     build_model=lambda: None, readings=readings,
    ...     devices=lambda: [Device("d0", "fleet"), Device("p0", "pilot")],
    ... )
    >>> task.segment_shape, task.outputs, task.device_names("fleet")
    ((2, 20), 2, ['d0'])
    """

    def __post_init__(self) -> None:
        problem = problem_of(self)
        if problem:
            raise TaskError(f"task {self.name!r}: {problem}")
