"""`python -m benchmarks.gains [--quick] [--only PART] [--task TASK]`."""

import argparse

import torch

from benchmarks.frame import main
from benchmarks.gains.drifts import drifts
from benchmarks.gains.ways import learning
from benchmarks.support.study import TASK

PARTS = (drifts, learning)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", default=TASK, help="whose drifts are drawn")


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts = {part.__name__: part for part in PARTS}
    main("gains", parts, ("torch", "numpy", "onnxruntime"), _options)
