"""What an actor puts into Ray's object store can be read by a server without a GPU."""

from dataclasses import replace

import torch

from fedmlic.arrays import Layout
from fedmlic.update import Units, Update
from sim.engines.ray import _Store


class OnGpu:
    """A tensor that lies elsewhere."""

    def __init__(self, values):
        self.values = values

    def cpu(self):
        return self.values


def test_sums_beside_the_model_leave_the_gpu_too():
    values = torch.ones(3, dtype=torch.float64)
    update = Update.zero(Layout(("w",), ((3,),), 1, 0), Units(1.0, 1.0))

    packed = _Store().pack(replace(update, extras={"scaffold/change": OnGpu(values)}), single=False)

    assert packed.update.extras["scaffold/change"] is values
    assert packed.update.sums.device.type == "cpu"
