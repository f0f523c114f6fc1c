"""A method with its network in memory: the same everywhere, scored in any batching."""

import numpy as np
import pytest
import torch

from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.learner import build_learner, build_network, choose_device, pooled_moments

LABELS = ("cat", "dog", "owl")
SHAPE = (16, 16, 3)


class Stored:
    """Images whose pixels are random but fixed by their row."""

    def take(self, rows):
        return np.stack([np.random.default_rng(row).integers(0, 256, SHAPE, dtype=np.uint8) for row in rows])


def learner(**changes):
    settings = {"method": "bce()", "model": "small_cnn(width=4, num_blocks=0)", **changes}
    return build_learner(Experiment(**settings), LABELS, SHAPE)


def test_the_seed_alone_decides_the_initial_weights():
    first = learner()
    torch.manual_seed(99)
    torch.rand(3)

    assert torch.equal(first.resident.flat, learner().resident.flat)
    assert not torch.equal(first.resident.flat, learner(seed=1).resident.flat)


def test_building_leaves_the_global_generator_where_it_was():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    learner()

    assert torch.equal(expected, torch.rand(1))


def test_the_resident_network_starts_as_the_method_built_it():
    made = learner()
    _, network = build_network(Experiment(method="bce()", model="small_cnn(width=4, num_blocks=0)"), made.task)

    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, made.resident.network.state_dict()[name])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_scores_are_probabilities_that_do_not_depend_on_the_batch(batch_size):
    made = learner(model="small_cnn(width=4, num_blocks=0, norm='pooled')")
    rows = np.array([5, 0, 3, 3, 9, 1, 2])
    expected = made.predict(Stored(), rows)

    found = made.predict(Stored(), rows, batch_size=batch_size)

    assert found.shape == (7, 3)
    assert found.dtype == np.float32
    assert ((found > 0) & (found < 1)).all()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(found[2], found[3])


def test_scoring_changes_nothing_even_with_batch_norm():
    made = learner(model="small_cnn(width=4, num_blocks=0, norm='pooled')")
    before = {name: tensor.clone() for name, tensor in made.resident.network.state_dict().items()}
    made.resident.network.train()

    made.predict(Stored(), np.arange(4))

    for name, tensor in made.resident.network.state_dict().items():
        assert torch.equal(before[name], tensor)


def test_no_images_have_no_scores():
    assert learner().predict(Stored(), np.empty(0, dtype=np.int64)).shape == (0, 3)


def test_statistics_of_batch_norm_travel_and_its_counter_does_not():
    made = learner(model="small_cnn(width=4, num_blocks=0, norm='pooled')")

    pairs = pooled_moments(made.resident.network)

    assert pairs
    assert made.resident.layout.moments == tuple(pairs)
    assert {name for pair in pairs for name in pair} <= set(made.resident.layout.names)
    assert not any("num_batches_tracked" in name for name in made.resident.layout.names)
    assert pooled_moments(learner().resident.network) == []


def test_devices():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for wrong in ("gpu", "cuda:99", "", "meta"):
        with pytest.raises(InputError, match="Expected device to be auto or one of cpu"):
            choose_device(wrong)
