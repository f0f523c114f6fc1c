"""fedrep: what its personal head is."""

import pytest

from clients.host import PRIVATE
from clients.memory import FolderMemory
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.learner import build_learner
from fedmlic.mods.feddyn import GRADIENT
from fedmlic.record import open_run


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


def test_norms_that_fedbn_keeps_train_with_the_body():
    model = "small_cnn(width=8, norm='pooled')"
    experiment = Experiment(method="bce()", model=model, mods="fedrep(head_epochs=3), fedbn()")
    made = build_learner(experiment, ("a", "b"), (8, 8, 1))
    first, second = made.mods[0].begin(made.resident, None, None).stages

    assert first == (3, frozenset({"head.weight", "head.bias"}))
    norms = set(made.resident.private_names) - first.tensors
    assert any(name.endswith("running_mean") for name in norms)
    assert norms < second.tensors
    assert first.tensors | second.tensors == set(made.resident.trainable.names)
    assert not first.tensors & second.tensors


@pytest.mark.parametrize("rule", ["scaffold()", "fednova()"])
def test_a_rule_that_counts_steps_is_refused_before_anything_is_read(play, tmp_path, rule):
    with pytest.raises(InputError, match=r"counts steps, got fedrep.*fedper\(\) in place of fedrep"):
        play(tmp_path / "run", mods="fedrep()", strategy=rule, optimizer="sgd")

    assert not (tmp_path / "run").exists()


def test_the_head_is_left_alone_by_dynamic_regularisation(play, tmp_path):
    """A client's own head is not exchanged, so feddyn pulls it nowhere; only the body trains otherwise."""
    changes = {"mods": "fedrep(head_epochs=1)", "optimizer": "sgd", "learning_rate": 0.05, "num_rounds": 1}
    play(tmp_path / "plain", **changes)
    play(tmp_path / "dyn", strategy="feddyn(alpha=0.5)", **changes)

    memories = [FolderMemory(tmp_path / name / "memory") for name in ("plain", "dyn")]
    turns = {turn["client"]: turn for turn in open_run(tmp_path / "dyn").events() if turn["event"] == "client"}
    assert not any(turn.get("error") for turn in turns.values())
    for client in turns:
        plain, dynamic = (memory.recall(client, 1) for memory in memories)
        heads = [name for name in plain if name.startswith(PRIVATE)]
        assert len(heads) == 2
        assert all(plain[name].equal(dynamic[name]) for name in heads)
        assert dynamic[GRADIENT].abs().max() > 0
