"""A file of ONNX in the place of a torch module: it answers, and has no weights that learn."""

from typing import Any

import torch
from torch import Tensor, nn

from streams.contract.task.onnx_file import OnnxFile
from streams.learning.onnx_model import OnnxSession


class OnnxModule(nn.Module):
    """Answers segments (n, channels, samples) by a graph. Copies share the session, which several
    threads may run. digest: the SHA-256 of the file that the graph is of."""

    def __init__(self, graph: bytes, around: OnnxFile, digest: str = "") -> None:
        super().__init__()
        self.graph, self.around, self.digest = graph, around, digest
        self._session = OnnxSession(graph, {}, around)

    def __deepcopy__(self, _memo: dict[int, Any]) -> "OnnxModule":
        return self

    def forward(self, segments: Tensor) -> Tensor:
        answers = self._session.run(segments.detach().cpu().numpy())
        return torch.from_numpy(answers).to(segments.device)
