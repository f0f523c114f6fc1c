"""probe_then_tune: which tensors of which method train when, and what it cannot be put around."""

import pytest
import torch
from safetensors.torch import load_file

from clients.opening import open_host
from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.image_state import image_state
from fedmlic.learner import build_learner
from fedmlic.method import stretch_of
from fedmlic.methods import role
from fedmlic.record import open_run
from strategies.server.check import check_experiment

NAMES = ("cat", "dog", "kite")


def built(method):
    settings = Experiment(method=method, model="small_cnn(width=8)")
    return build_learner(settings, NAMES, (16, 16, 3))


@pytest.mark.parametrize(
    "method", ["bce()", "fedlgt(width=16, layers=1, text='learned()')", "asl()", "query2label(width=16)"]
)
def test_all_but_the_backbone_trains_first_and_then_everything(method):
    learner = built(f"probe_then_tune(probe_rounds=3, method={method!r})")
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
    learner, plain = built("probe_then_tune(method='asl(gamma_neg=2)')"), built("asl(gamma_neg=2)")
    images = torch.rand(4, 3, 16, 16)

    assert torch.equal(learner.resident.flat, plain.resident.flat)
    for each in (learner, plain):
        each.resident.network.eval()
    assert torch.equal(
        learner.method.predict(learner.resident.network, images), plain.method.predict(plain.resident.network, images)
    )


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("probe_then_tune()", "phases of its own"),
        ("probmcl()", "phases of its own"),
        ("pml_cdcr(difficulty='global')", "sums of every round of its own"),
        ("fedcorr()", "conditions of its own"),
        ("fedlgtt()", "Did you mean 'fedlgt'"),
        ("bce(pol='max')", "pool"),
    ],
)
def test_what_it_cannot_be_put_around_is_refused(method, why):
    with pytest.raises(InputError, match=why):
        spec.build("method", f"probe_then_tune(method={method!r})")


def test_a_run_without_a_round_of_fine_tuning_is_refused(tiny):
    with pytest.raises(InputError, match="everything trains after probe_rounds=3, and num-rounds is 3"):
        check_experiment(*tiny(method="probe_then_tune(probe_rounds=3)", num_rounds=3))


def test_the_backbone_and_its_norms_stand_still_bit_for_bit_and_then_train(play, tmp_path):
    play(
        tmp_path / "run",
        method="probe_then_tune(probe_rounds=2)",
        model="resnet(depth=18, norm='pooled')",
        num_rounds=3,
        keep_checkpoints=3,
    )
    folder = open_run(tmp_path / "run")
    first, second, third = (folder.load_checkpoint(number)[0] for number in folder.checkpoints())
    backbone = [name for name in first if name.startswith("model/backbone.")]

    assert any("running_mean" in name for name in backbone)
    assert all(torch.equal(first[name], second[name]) for name in backbone)
    assert not torch.equal(first["model/head.weight"], second["model/head.weight"])
    assert not any(torch.equal(second[name], third[name]) for name in backbone if name.endswith("running_mean"))


def test_what_clients_keep_of_their_images_stays_when_the_backbone_begins_to_train(play, tmp_path):
    play(tmp_path / "run", method="probe_then_tune(probe_rounds=2, method='splc()')", num_rounds=3, cohort_size=0)
    kept = sorted((tmp_path / "run").rglob("round-00003.safetensors"))
    kept = [load_file(file) for file in kept if "images/passes" in load_file(file)]

    assert len(kept) == 6
    assert [tensors["images/passes"][1].item() for tensors in kept] == [2] * 6  # the third pass, counted from 0


def test_roles_estimates_go_over_into_fine_tuning_bit_for_bit(play, tmp_path, monkeypatch):
    """The pair that is ROLE's LinearInit: what a turn of fine-tuning begins with is what the last probe left."""
    begun, left = {}, {}

    def noted(local, name, start):
        theta = image_state(local, name, start)
        begun[local.client, local.round], left[local.client, local.round] = theta.clone(), theta  # changed in place
        return theta

    monkeypatch.setattr(role, "image_state", noted)
    method = "probe_then_tune(probe_rounds=2, method='role(expected=1.5)')"
    play(tmp_path / "run", method=method, regime="single_positive()", num_rounds=3, cohort_size=0)

    clients = {client for client, _ in begun}
    assert len(clients) == 6
    for client in clients:
        for number in (1, 2, 3):
            assert not torch.equal(left[client, number].detach(), begun[client, number])  # it trains in both stretches
        for number in (1, 2):
            assert torch.equal(begun[client, number + 1], left[client, number].detach())


def test_a_turn_that_failed_in_a_stage_does_not_change_what_the_next_turns_train(tiny):
    """A mod lets the head train and the turn ends there; the next client's probe is the same decoder as ever."""
    settings, runtime = tiny(method="probe_then_tune(method='query2label(width=16)')", num_rounds=9)
    host = open_host("host", settings, runtime)
    resident = host._learner.resident
    stretch = stretch_of(host._learner.method, 1)
    expected = set(stretch.phase.tensors(resident.network))

    resident.train_only(set(host._learner.method.label_rows(resident.network)))

    assert set(host._trained(stretch)) == expected
    assert len(expected) > 2
