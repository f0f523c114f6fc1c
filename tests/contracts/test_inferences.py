"""What every inference in the catalogue must do."""

import inspect
import os

import numpy as np
import pytest
import torch

from fedmlic import spec
from fedmlic.experiment import Experiment
from fedmlic.learner import build_learner
from fedmlic.pixel_scale import to_float

NAMES = ("one", "two", "three")
SHAPE = (13, 10, 1)


@pytest.fixture(params=os.environ.get("FEDMLIC_ENTRY", "").split() or spec.entries("inference"))
def inference(request):
    return request.param


class Pixels:
    """Images that are random but fixed by their row."""

    def take(self, rows):
        return np.stack([np.random.default_rng(row).integers(0, 256, SHAPE, dtype=np.uint8) for row in rows])


def learner(inference, **changes):
    settings = {"method": "bce()", "model": "small_cnn(width=4, num_blocks=0, norm='pooled')", **changes}
    return build_learner(Experiment(inference=inference, **settings), NAMES, SHAPE)


def test_the_docstring_names_every_argument(inference):
    factory = spec.factory("inference", inference)

    for name, parameter in inspect.signature(factory).parameters.items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert f"{name}:" in factory.__doc__


def test_predictions_are_probabilities_of_each_image_alone(inference):
    learned, rows = learner(inference), np.arange(7)
    before = torch.get_rng_state()

    probs = learned.predict(Pixels(), rows)

    assert torch.equal(before, torch.get_rng_state())
    assert probs.shape == (7, len(NAMES))
    assert probs.dtype == np.float32
    assert ((probs >= 0) & (probs <= 1)).all()
    for batch_size in (1, 3):
        np.testing.assert_allclose(learned.predict(Pixels(), rows, batch_size), probs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(learned.predict(Pixels(), rows[::-1])[::-1], probs, rtol=1e-5, atol=1e-6)


def test_each_label_is_judged_by_itself(inference):
    """Another order of labels is another order of scores."""
    of = spec.build("inference", inference).of
    learned = learner(inference)
    network, images = learned.resident.network.eval(), to_float(Pixels().take(range(4)))

    with torch.inference_mode():
        probs = of(lambda batch: learned.method.predict(network, batch))(images)
        turned = of(lambda batch: learned.method.predict(network, batch)[:, [2, 0, 1]])(images)

    torch.testing.assert_close(turned, probs[:, [2, 0, 1]])


def test_it_changes_nothing_in_the_network_and_nothing_in_training(inference):
    plain, other = learner("plain()"), learner(inference)
    assert torch.equal(plain.resident.flat, other.resident.flat)
    assert other.resident.network.training
    before = other.resident.flat.clone()

    other.predict(Pixels(), np.arange(3))

    assert torch.equal(other.resident.flat, before)
