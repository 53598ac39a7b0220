"""A task: everything that a user says about what a fleet learns, in one Python file.

Every command line names the file as `path/to/file.py:attribute` or `package.module:attribute`, and
every process imports it. Devices import it without torch, so `import torch` belongs inside
`build_model` and `build_teacher`. Users import these names from the package `tidewheel`.
"""

from streams.contract.task.channels import Category, Time
from streams.contract.task.description import Task
from streams.contract.task.loading import absolute_reference, check_model, load_task
from streams.contract.task.onnx_file import NOTHING_LEARNS, OnnxFile
from streams.contract.task.parts import (
    DEVICE_NAME,
    MINIMUM_SAMPLES,
    ROLES,
    STRATEGIES,
    Answered,
    Device,
    Metric,
    Outcome,
    Privacy,
    Reading,
    Readings,
    Role,
    Segment,
    Training,
    is_local,
    is_under,
    learns,
    travels,
)
from streams.contract.task.validation import (
    NAME,
    strategy_problem,
)
from streams.contract.task.windows import Before, Count, Session, Sliding, Tumbling, Window

__all__ = [
    "DEVICE_NAME",
    "MINIMUM_SAMPLES",
    "NAME",
    "NOTHING_LEARNS",
    "ROLES",
    "STRATEGIES",
    "Answered",
    "Before",
    "Category",
    "Count",
    "Device",
    "Metric",
    "OnnxFile",
    "Outcome",
    "Privacy",
    "Reading",
    "Readings",
    "Role",
    "Segment",
    "Session",
    "Sliding",
    "Task",
    "Time",
    "Training",
    "Tumbling",
    "Window",
    "absolute_reference",
    "check_model",
    "is_local",
    "is_under",
    "learns",
    "load_task",
    "strategy_problem",
    "travels",
]
