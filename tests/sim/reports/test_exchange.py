"""What a client receives and sends, as described before a run: a hand count, and what runs record."""

import io

import pytest
from rich.console import Console

from clients.opening import images_of, open_federation
from fedmlic.record import open_run
from sim.reports.exchange import exchange, size, table


def described(tiny, **changes):
    experiment, runtime = tiny(**changes)
    return exchange(experiment, open_federation(experiment, runtime, images_of(experiment, runtime)))


CNN = 4 * 3 * 9 + 2 * 4 + 8 * 4 * 9 + 2 * 8
"""Convolutions of 3 x 3 from 3 to 4 and from 4 to 8 channels, each with a GroupNorm's weight and bias."""
HEAD = 10 * 8 + 10
"""A linear unit per label on eight features."""


def test_a_count_by_hand(tiny):
    found = described(tiny, mods="int8()")

    assert found["parameters"] == {"all": CNN + HEAD, "trained": CNN + HEAD, "frozen": 0, "private": 0}
    assert found["bytes_up_before"] == 0
    (phase,) = found["phases"]
    assert (phase["first_round"], phase["last_round"]) == (1, 4)
    assert phase["trained"] == phase["exchanged"] == CNN + HEAD
    assert phase["bytes_down"] == 4 * (CNN + HEAD)
    assert phase["bytes_up"] == (CNN + HEAD) + 4 * 8  # one byte a number, and a scale of four per tensor


def test_private_tensors_are_trained_and_not_sent(tiny):
    found = described(tiny, mods="fedper()", strategy="fedavg()")

    assert found["parameters"] == {"all": CNN + HEAD, "trained": CNN + HEAD, "frozen": 0, "private": HEAD}
    assert found["phases"][0]["exchanged"] == CNN
    assert found["phases"][0]["bytes_up"] == 4 * CNN


RUNS = {
    "a part of the numbers": {"mods": "top_k(fraction=0.1), clip(norm=1.0)"},
    "control variates": {"strategy": "scaffold()", "optimizer": "sgd"},
    "phases": {"method": "probe_then_tune(probe_rounds=1)"},
    "counts before round 1": {
        "method": "balanced_bce(counts='global')",
        "allow_statistics": True,
        "statistics_min_clients": 1,
    },
    "sums of every round": {
        "method": "pml_cdcr(difficulty='global', warm_up=1)",
        "allow_statistics": True,
        "statistics_min_clients": 1,
    },
    "counts, and sums for a solution": {
        "method": "ridge()",
        "num_rounds": 1,  # a client sends them once
        "allow_statistics": True,
        "statistics_min_clients": 1,
    },
    "adapters in eight bits": {"model": "clip_image(trainable='lora(2)')", "mods": "int8()"},
    "statistics of norms": {"model": "small_cnn(width=4, num_blocks=0, norm='pooled')", "mods": "int8()"},
}


@pytest.mark.parametrize("case", RUNS)
def test_a_run_records_these_bytes(tiny, play, tmp_path, case):
    changes = {"num_rounds": 2, **RUNS[case]}
    found = described(tiny, **changes)
    play(tmp_path / "run", **changes)
    turns = [event for event in open_run(tmp_path / "run").events() if event["event"] == "client" and event["round"]]

    assert turns
    assert (found["bytes_up_before"] > 0) == ("counts" in case)
    assert len(found["phases"]) == (2 if case == "phases" else 1)
    for turn in turns:
        phase = next(each for each in found["phases"] if each["first_round"] <= turn["round"] <= each["last_round"])
        assert (turn["bytes-down"], turn["bytes-up"]) == (phase["bytes_down"], phase["bytes_up"])


def shown(found):
    console = Console(file=io.StringIO(), width=80)
    console.print(table(found))
    return console.file.getvalue()


def test_the_table_fits_80_columns_and_names_phases(tiny):
    text = shown(described(tiny, method="probe_then_tune(probe_rounds=1)", num_rounds=3))

    assert max(map(len, text.splitlines())) <= 80
    for part in (f"{CNN + HEAD}", "rounds 1-1: sends per round", f"{4 * HEAD} bytes", "rounds 2-3: trained"):
        assert part in text


def test_weights_that_are_not_here_do_not_stop_the_description(tiny):
    found = described(tiny, model="resnet(weights='/nowhere/resnet18.pth')")

    assert set(found) == {"error"}
    assert "nothing at '/nowhere/resnet18.pth'" in found["error"]
    assert "not counted" in shown(found)


def test_sizes():
    assert size(12_500) == "12,500 bytes (12.5 kB)"
    assert size(3_000_000_000) == "3,000,000,000 bytes (3.0 GB)"
