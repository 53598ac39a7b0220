"""The example with a network that was trained elsewhere: its cameras, and what of it travels."""

from itertools import islice

import numpy as np
import torch

from examples.digits.task import CAMERAS, SIDE, images, task
from streams.contract.task import travels
from streams.contract.task.parts import one_by_one
from streams.learning.learning import predict
from streams.segments.segmentation import segments_of


def test_a_camera_sees_its_images_line_by_line() -> None:
    [name] = task.device_names("fleet")[:1]
    found = list(islice(segments_of(one_by_one(task.readings(name)), task), 20))
    own = images()[int(name[-2:]) :: CAMERAS]
    for _, _, segment, label in found:
        lines = segment.T.reshape(-1)  # a reading is a line: (channels, samples) is turned
        likeness = [np.corrcoef(lines, row[:-1])[0, 1] for row in own]
        assert own[int(np.argmax(likeness))][-1] == label
        assert max(likeness) > 0.6


def test_the_network_has_two_million_parameters_of_which_a_thousandth_travels() -> None:
    model = task.build_model()  # type: ignore[operator]
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    sent = sum(size for name, size in sizes.items() if travels(name, task.training))
    assert sum(sizes.values()) > 2_000_000
    assert sent / sum(sizes.values()) < 0.002
    image = torch.rand(3, SIDE, SIDE).numpy()
    assert predict(model, image).shape == (3, 10)
