"""What a user of NVFlare writes, after its own hello-pt: a recipe of FedAvg (`job.py`), a script
that trains (`train.py`) and a class of the model (`network.py`)."""
