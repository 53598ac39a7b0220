"""A ClientApp as Flower's own examples have it. Its training is the product's, `learning.fit`."""

import random
import time

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from streams.contract.task import load_task
from streams.learning import learning

app = ClientApp()


def _begin(message: Message, context: Context):
    torch.set_num_threads(1)
    task = load_task(str(context.run_config["task"]))
    data = np.load(str(context.node_config["data"]))
    model = learning.build_model(task)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return task, data, model


@app.train()
def train(message: Message, context: Context) -> Message:
    node, number = context.node_config, int(message.content["config"]["server-round"])
    task, data, model = _begin(message, context)
    x, y = data["x"], data["y"]
    learning.fit(
        model, len(x), learning.segment_loss(task, model, x, y),
        epochs=int(context.run_config["epochs"]), batch_size=task.training.batch_size,
        learning_rate=task.training.learning_rate, seed=number,
    )  # fmt: skip
    if random.Random(f"{node['device']}/{number}").random() < float(node.get("drop", 0.0)):
        time.sleep(60.0)  # until Flower gives up a node of which it hears nothing
        raise ConnectionError("the device was away")
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": len(x)}),
    }
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    task, data, model = _begin(message, context)
    right = task.correct(learning.predict(model, data["held_x"]), data["held_y"])
    found = {"num-examples": len(right), "accuracy": float(right.mean())}
    return Message(RecordDict({"metrics": MetricRecord(found)}), reply_to=message)
