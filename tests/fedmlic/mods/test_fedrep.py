"""fedrep: what its personal head is."""

import pytest

from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.learner import build_learner


def learner(method):
    experiment = Experiment(method=method, model="small_cnn(width=8)", mods="fedrep()")
    return build_learner(experiment, ("a", "b"), (8, 8, 1))


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("bce()", ("head.weight", "head.bias")),
        ("fedlgt()", ("readout.weight", "readout.bias")),
        ("ctran(readout='shared')", ("label_tokens",)),
    ],
)
def test_the_head_is_what_has_a_row_per_label(method, head):
    assert set(learner(method).resident.private_names) == set(head)


def test_a_network_without_a_row_per_label_has_no_head():
    with pytest.raises(InputError, match="readout='row'"):
        learner("fedlgt(readout='shared')")
