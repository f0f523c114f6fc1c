"""State of a client's images in whole runs: one result on any engine, killed or not."""

import pytest
import torch

from clients.memory import FolderMemory
from fedmlic.record import open_run
from sim import run as engine
from strategies.server import rounds

METHODS = ["role()", "em(pseudo_labels=True, warm_up=1, epochs=4)", "large_loss(variant='Cp', delta=2)"]


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_after_its_clients_kept_their_state_goes_on_to_the_same_weights(
    play, tmp_path, monkeypatch, method
):
    changes = {"method": method, "regime": "single_positive()", "num_rounds": 3}
    expected = play(tmp_path / "whole", **changes)
    original, calls = rounds.Rounds._require_enough, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(rounds.Rounds, "_require_enough", killed)
        with pytest.raises(Killed):
            play(tmp_path / "run", **changes)
    result = engine.resume(tmp_path / "run")

    assert expected["weights_sha256"] == result["weights_sha256"]


def test_one_hash_in_process_and_on_two_processes_and_passes_are_counted(play, tmp_path):
    changes = {"method": "role()", "regime": "single_positive()", "num_rounds": 3}
    expected = play(tmp_path / "in-process", **changes)
    result = play(tmp_path / "two", engine="processes", workers=2, **changes)

    assert expected["weights_sha256"] == result["weights_sha256"]
    tensors, _ = open_run(tmp_path / "two").load_checkpoint(3)
    ours, theirs = (FolderMemory(tmp_path / name / "memory") for name in ("in-process", "two"))
    for client, number in tensors["last-turns"].tolist():
        kept, other = ours.recall(client, number), theirs.recall(client, number)
        assert kept.keys() == other.keys() == {"images/role", "images/of"}
        assert all(torch.equal(kept[name], other[name]) for name in kept)
