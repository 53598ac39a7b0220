"""Weights that a user brings: a file of safetensors, or a state dict that torch has saved.

Nothing is unpickled but tensors in plain containers: torch.load with `weights_only`.
"""

import hashlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from streams.contract.errors import UsageError
from streams.learning.learning import load_state

NAMED = 3  # tensors in an error
WRAPPED = ("state_dict", "model")  # keys under which trainers save it


def read_weights(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Return the tensors of a file, and its name with its SHA-256; raise UsageError."""
    state: Any
    try:
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            state = safetensors.torch.load(data)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickles that it then refuses
                state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    except Exception as exc:  # safetensors', torch's, or of an unpickler that refuses
        raise UsageError(
            f"{path} has no weights that can be read: {_why(path, data, exc)}"
        ) from exc
    for key in WRAPPED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(map(torch.is_tensor, state.values())):
        raise UsageError(f"{path} holds {type(state).__name__}, not a state dict of tensors")
    tensors = {str(name): _array(tensor) for name, tensor in state.items()}
    return tensors, f"{path.name} sha256:{hashlib.sha256(data).hexdigest()}"


def _why(path: Path, data: bytes, exc: Exception) -> str:
    """Return what a refused file is, and what to do. torch's own text advises to run its code."""
    save = "save model.state_dict(), by safetensors.torch.save_file or torch.save"
    if path.suffix == ".onnx":
        return "it is an ONNX file, which goes into build_model=OnnxFile(...)"
    if data[:2] == b"PK" and b"/code/__torch__" in data:
        return "it is TorchScript, which goes into build_model=OnnxFile(...)"
    if "weights_only" in str(exc):
        return f"it holds more than tensors, as code or a whole module, and was not run: {save}"
    return f"it is not whole, or of another kind: {save}"


def loaded(
    model: nn.Module, tensors: Mapping[str, np.ndarray], where: Path, what: str = "model"
) -> nn.Module:
    """Load the tensors into a model whose names and shapes they have; counters of batch norm may be
    missing. Raise UsageError; what: the model's name in the task."""
    expected = {name: value.numpy() for name, value in model.state_dict().items()}
    lacks = [n for n, v in expected.items() if n not in tensors and v.dtype.kind == "f"]
    more = [name for name in tensors if name not in expected]
    other = [f"{n} {tensors[n].shape}, not {expected[n].shape}" for n in tensors
             if n in expected and tensors[n].shape != expected[n].shape]  # fmt: skip
    for wrong, names in (("lacks", lacks), ("has also", more), ("has", other)):
        if names:
            rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise UsageError(
                f"{where} does not fit the task's {what}: it {wrong} {', '.join(names[:NAMED])}"
                f"{rest}" + (f", and has {more[0]}" if wrong == "lacks" and more else "")
            )
    if not all(np.isfinite(value).all() for value in tensors.values() if value.dtype.kind == "f"):
        raise UsageError(f"{where} has weights that are not finite")
    cast = {n: np.asarray(tensors.get(n, v), v.dtype) for n, v in expected.items()}
    return load_state(model, cast).eval()


def _array(tensor: torch.Tensor) -> np.ndarray:
    whole = tensor.detach().cpu()
    found: np.ndarray = (whole.float() if whole.is_floating_point() else whole).numpy()
    return found
