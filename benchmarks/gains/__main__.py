"""`python -m benchmarks.gains [--quick] [--only PART]`."""

import torch

from benchmarks.frame import main
from benchmarks.gains.drifts import drifts
from benchmarks.gains.hostile import hostile
from benchmarks.gains.ways import learning

PARTS = (drifts, hostile, learning)

if __name__ == "__main__":
    torch.set_num_threads(1)
    main("gains", {part.__name__: part for part in PARTS}, ("torch", "numpy", "onnxruntime"))
