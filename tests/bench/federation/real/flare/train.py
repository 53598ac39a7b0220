"""A client's script, as NVFlare's own examples have it. Its training is the product's,
`learning.fit`."""

import argparse
from pathlib import Path

import numpy as np
import nvflare.client as flare
import torch

from streams.contract.task import load_task
from streams.learning import learning
from tests.bench.federation.real.flare.network import Network


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--task")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--epochs", type=int)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    task, model = load_task(asked.task), Network()
    flare.init()
    data = np.load(asked.data / f"{flare.system_info()['site_name']}.npz")
    x, y = data["x"], data["y"]
    while flare.is_running():
        received = flare.receive()
        model.load_state_dict({n: torch.as_tensor(v) for n, v in received.params.items()})
        right = task.correct(learning.predict(model, data["held_x"]), data["held_y"])
        learning.fit(
            model, len(x), learning.segment_loss(task, model, x, y), epochs=asked.epochs,
            batch_size=task.training.batch_size, learning_rate=task.training.learning_rate,
            seed=received.current_round + 1,
        )  # fmt: skip
        trained = {name: value.detach().clone() for name, value in model.state_dict().items()}
        flare.send(
            flare.FLModel(
                params=trained,
                metrics={"accuracy": float(right.mean())},
                meta={"NUM_STEPS_CURRENT_ROUND": len(x)},
            )
        )


if __name__ == "__main__":
    main()
