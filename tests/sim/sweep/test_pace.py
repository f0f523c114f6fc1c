"""What a run costs: rounds and checkpoints grow with it, frozen tensors do not."""

import pytest

from sim.sweep.pace import measured


def test_frozen_tensors_are_written_once(tmp_path):
    (tmp_path / "frozen.safetensors").write_bytes(bytes(1000))
    (tmp_path / "rounds.parquet").write_bytes(bytes(20))
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for number in (1, 2):
        (checkpoints / f"round-{number:05d}.safetensors").write_bytes(bytes(50))

    cost = measured(tmp_path, wall=12.0, rounds=2, seconds=8.0)

    assert cost.bytes(2, keep=1) == pytest.approx(1000 + 20 + 2 * 50)
    assert cost.bytes(200, keep=3) == pytest.approx(1000 + 200 * 10 + 4 * 50)
    assert cost.seconds(200) == pytest.approx(4 + 200 * 4)
