"""`python -m tests.bench.federation.real.flare.job`: FedAvg in NVFlare's POC mode, that is its own
server and clients as processes, with TLS between them. Prints the folder with the result."""

import argparse
from pathlib import Path

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import PocEnv


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--task")
    parser.add_argument("--data", help="a folder with <client>.npz")
    parser.add_argument("--weights", help="the first model, as torch saves it")
    parser.add_argument("--clients", help="names, with commas between them")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--epochs", type=int)
    asked = parser.parse_args()
    clients = asked.clients.split(",")
    network = "tests.bench.federation.real.flare.network.Network"
    recipe = FedAvgRecipe(
        name="bench",
        model={"class_path": network, "args": {}},
        initial_ckpt=asked.weights,
        min_clients=len(clients),
        num_rounds=asked.rounds,
        train_script=str(Path(__file__).with_name("train.py")),
        train_args=f"--task {asked.task} --data {asked.data} --epochs {asked.epochs}",
    )
    env = PocEnv(clients=clients, num_clients=len(clients))
    try:
        run = recipe.execute(env)
        assert run is not None
        print(f"\n{run.get_result(clean_up=False)}", flush=True)  # noqa: T201
    finally:
        env.stop()


if __name__ == "__main__":
    main()
