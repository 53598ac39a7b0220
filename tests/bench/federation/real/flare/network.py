"""HAR's device model as a class: NVFlare names the model by its path."""

from torch import nn

from streams.tasks import har


class Network(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*har.build_model())  # type: ignore[misc]
