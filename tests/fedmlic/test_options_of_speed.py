"""Memory order and precision change how a client's training is computed, not what it computes."""

import pytest
import torch

from clients.host import Host
from clients.opening import open_federation
from fedmlic.arrays import Resident
from fedmlic.learner import build_learner
from fedmlic.protocol import Request
from fedmlic.update import Weighting, units_for
from strategies.server.server import build_server

MODELS = ["small_cnn(width=8)", "resnet(depth=18)", "resnet(depth=18, norm='pooled')"]


@pytest.fixture
def trained(tiny):
    """A function: (start, mean after two clients), in the exchanged order."""

    def made(*, channels_last=False, **changes):
        experiment, runtime = tiny(local_steps=2, batch_size=8, optimizer="sgd", **changes)
        server = build_server(experiment, runtime)
        task = server.learner.task
        learner = build_learner(experiment, task.label_names, task.image_shape, channels_last=channels_last)
        federation = open_federation(experiment, runtime, server.corpus)
        start = learner.resident.flat.clone()
        host = Host("test", experiment, federation, learner)
        weighting = Weighting("uniform")
        request = Request("train", 1, start, units_for(weighting, [1, 1], 10), weighting)
        reply = host.play(request, [0, 3])
        assert [turn.error for turn in reply.turns] == ["", ""]
        return start, reply.updates[0].mean(start)

    return made


@pytest.mark.parametrize("model", MODELS)
def test_channels_last_exchanges_and_trains_the_same(trained, model):
    start, usual = trained(model=model)
    same_start, other = trained(model=model, channels_last=True)

    assert torch.equal(start, same_start), "the exchanged order is one"
    moved = (usual - start).abs().max()
    assert moved > 0
    assert (usual - other).abs().max() < 0.02 * moved


def test_channels_last_reaches_the_convolutions_and_their_images():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.Flatten(), torch.nn.Linear(6, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    held = Resident(network, num_labels=2, channels_last=True)

    assert held.memory_format is torch.channels_last
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not network[0].weight.is_contiguous()
    for name, view in held.layout.views(held.flat):
        assert torch.equal(view, before[name])
    held.load(torch.arange(held.layout.size, dtype=torch.float32))
    assert torch.equal(held.layout.view(held.flat, "0.weight").flatten(), torch.arange(162.0))
    held.check()


def test_bfloat16_is_close_to_float32(trained):
    start, usual = trained(model="small_cnn(width=8)")
    _, other = trained(model="small_cnn(width=8)", precision="bfloat16")

    moved = (usual - start).norm()
    assert 0 < (usual - other).norm() < 0.2 * moved
    assert other.dtype == torch.float32
