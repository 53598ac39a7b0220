"""Where the weights of examples/digits/task.py come from: a network that has seen clean images, as
if somebody had published it.

    python -m examples.digits.pretrain      writes digits.safetensors beside the task, in a minute
"""

import numpy as np
import safetensors.torch
import torch
from torch.nn import functional as F

from examples.digits.task import CAMERAS, ROLES, SIDE, WEIGHTS, build_model, images

EPOCHS, BATCH = 12, 64


def main() -> None:
    """Train on the pilots' and the lab's images without their cameras, and save the weights."""
    torch.manual_seed(0)
    central = ROLES["pilot"] + ROLES["lab"]
    rows = images()[np.arange(len(images())) % CAMERAS < central]
    pixels = torch.from_numpy(rows[:, :-1].reshape(-1, SIDE, SIDE).transpose(0, 2, 1) / 16)
    labels = torch.from_numpy(rows[:, -1]).long()
    model = build_model().train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for epoch in range(EPOCHS):
        losses = []
        for batch in torch.split(torch.randperm(len(labels)), BATCH):
            loss = F.cross_entropy(model(pixels[batch].contiguous()), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {np.mean(losses):.3f}")  # noqa: T201
    safetensors.torch.save_file(model.state_dict(), WEIGHTS)
    print(f"{WEIGHTS}: {sum(p.numel() for p in model.parameters()):,} parameters")  # noqa: T201


if __name__ == "__main__":
    main()
