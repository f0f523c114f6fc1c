"""The function call as a transport: what it gives its host lies where the host computes."""

from types import SimpleNamespace

import torch

from fedmlic.protocol import Reply, Request
from sim.engines.inprocess import InProcess


def test_what_is_shared_lies_on_the_hosts_device_also_in_a_resumed_run():
    """A checkpoint is read to the CPU; the control variate of scaffold meets parameters on the GPU."""
    asked = []

    def turns(request, clients):
        asked.append((request.shared["scaffold/control"].device.type, clients))
        return ()

    host = SimpleNamespace(device=torch.device("meta"), at_once=1, turns=turns, collect=Reply)
    request = Request("train", 3, torch.zeros(4), shared={"scaffold/control": torch.ones(4)})

    list(InProcess(host).play(request, [5, 6]))

    assert asked == [("meta", [5]), ("meta", [6])]
