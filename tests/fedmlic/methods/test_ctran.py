"""C-Tran: what is learned, and that it is FedLGT without FedLGT's two ideas."""

import numpy as np
import pytest
import torch

from fedmlic.experiment import Experiment
from fedmlic.learner import build_learner
from fedmlic.method import Local
from fedmlic.shard import Shard

NAMES = ("a", "b", "c")


class Pixels:
    def __init__(self, pixels):
        self.pixels = pixels

    def take(self, rows):
        return self.pixels[rows]


def never():
    pytest.fail("C-Tran has no global model to ask")


def train(method):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 8, 8, 1)).astype(np.uint8)
    labels = rng.integers(-1, 2, (9, len(NAMES))).astype(np.int8)
    nothing, empty = np.zeros(0, dtype=np.int64), np.zeros((0, len(NAMES)), np.int8)
    shard = Shard(0, NAMES, Pixels(pixels), np.arange(9), labels, nothing, empty)
    experiment = Experiment(method=method, model="small_cnn(width=8)", batch_size=4)
    learner = build_learner(experiment, NAMES, (8, 8, 1))
    start = learner.resident.flat.clone()
    learner.method.train(learner.resident, shard, Local(experiment, 1, 0, torch.device("cpu"), never))
    return learner, start


def test_label_and_state_vectors_are_learned_and_unknown_is_not():
    learner, start = train("ctran()")

    layout = learner.resident.layout
    moved = {name: (view != layout.view(start, name)) for name, view in layout.views(learner.resident.flat)}
    assert moved["label_tokens"].any(dim=1).tolist() == [True] * 3
    assert moved["state_tokens"].any(dim=1).tolist() == [True] * 2
    assert layout.names[-3:] == ("label_tokens", "readout.weight", "readout.bias")


@pytest.mark.parametrize(
    "arguments", ["", "layers=1, reduction='sum', known_fraction_max=0.5, positions='sine'", "readout='shared'"]
)
def test_it_is_fedlgt_without_text_and_guidance(arguments):
    ctran, _ = train(f"ctran({arguments})")
    fedlgt, _ = train(f"fedlgt(text='learned()', guidance=False, {arguments})")

    assert ctran.resident.layout == fedlgt.resident.layout
    assert torch.equal(ctran.resident.flat, fedlgt.resident.flat)


def test_with_a_shared_read_out_only_the_label_vectors_have_a_row_per_label():
    learner, start = train("ctran(readout='shared')")

    layout = learner.resident.layout
    assert layout.names[-1] == "label_tokens"
    assert layout.num_row_tensors == 1
    assert layout.view(start, "readout.weight").shape == (1, learner.resident.network.label_tokens.shape[1])
    assert (layout.view(start, "label_tokens") != layout.view(learner.resident.flat, "label_tokens")).any(dim=1).all()
