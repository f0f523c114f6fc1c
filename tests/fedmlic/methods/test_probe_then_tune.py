"""probe_then_tune: which tensors of which method train when, and what it cannot be put around."""

import pytest
import torch

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.learner import build_learner
from fedmlic.method import stretch_of

NAMES = ("cat", "dog", "kite")


def built(method):
    settings = Experiment(method=method, model="small_cnn(width=8)")
    return build_learner(settings, NAMES, (16, 16, 3))


@pytest.mark.parametrize(
    "of", ["bce()", "fedlgt(width=16, layers=1, text='learned()')", "asl()", "query2label(width=16)"]
)
def test_all_but_the_backbone_trains_first_and_then_everything(of):
    learner = built(f"probe_then_tune(probe_rounds=3, of={of!r})")
    network = learner.resident.network
    first, last = stretch_of(learner.method, 3), stretch_of(learner.method, 4)

    names = set(first.phase.tensors(network))
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert names == {name for name in trainable if name.split(".")[0] != "backbone"}
    assert names
    assert trainable - names
    assert last.first_round == 4
    assert last.phase.tensors is None
    assert first.phase.objective is last.phase.objective


def test_of_bce_the_probe_is_the_linear_head():
    learner = built("probe_then_tune()")

    assert set(stretch_of(learner.method, 1).phase.tensors(learner.resident.network)) == set(
        learner.method.label_rows(learner.resident.network)
    )


def test_everything_else_is_that_of_the_method():
    learner, plain = built("probe_then_tune(of='asl(gamma_neg=2)')"), built("asl(gamma_neg=2)")
    images = torch.rand(4, 3, 16, 16)

    assert torch.equal(learner.resident.flat, plain.resident.flat)
    for each in (learner, plain):
        each.resident.network.eval()
    assert torch.equal(
        learner.method.predict(learner.resident.network, images), plain.method.predict(plain.resident.network, images)
    )


@pytest.mark.parametrize(
    ("of", "why"),
    [
        ("probe_then_tune()", "phases of its own"),
        ("probmcl()", "of its own"),
        ("fedlgtt()", "fedlgt"),
        ("bce(pol='max')", "pool"),
    ],
)
def test_what_it_cannot_be_put_around_is_refused(of, why):
    with pytest.raises(InputError, match=why):
        spec.build("method", f"probe_then_tune(of={of!r})")
