import pytest
from torch import nn

from streams.contract.task import load_task
from tests.rig.made_up.model_files import TINY, trained


@pytest.fixture(scope="session")
def better() -> nn.Module:
    return trained(load_task(TINY))
