"""What a run costs: rounds and checkpoints grow with it, frozen tensors do not, and runs of a study share them."""

import pytest

from sim.sweep.folder import StudyFolder
from sim.sweep.pace import measured


def test_frozen_tensors_are_written_once(tmp_path):
    (tmp_path / "frozen.safetensors").write_bytes(bytes(1000))
    (tmp_path / "rounds.parquet").write_bytes(bytes(20))
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for number in (1, 2):
        (checkpoints / f"round-{number:05d}.safetensors").write_bytes(bytes(50))

    cost = measured(tmp_path, wall=12.0, rounds=2, seconds=8.0)

    assert cost.frozen == 1000
    assert cost.bytes(2, keep=1) == pytest.approx(20 + 2 * 50)
    assert cost.bytes(200, keep=3) == pytest.approx(200 * 10 + 4 * 50)
    assert cost.seconds(200) == pytest.approx(4 + 200 * 4)


def test_equal_frozen_tensors_of_a_study_are_one_file(tmp_path):
    study = StudyFolder(tmp_path)
    contents = {"a": b"backbone", "b": b"backbone", "c": b"another"}
    for name, content in contents.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "frozen.safetensors").write_bytes(content)

    for _ in range(2):
        for name in contents:
            study.share_frozen(tmp_path / "runs" / name)

    files = {name: tmp_path / "runs" / name / "frozen.safetensors" for name in contents}
    assert {name: file.read_bytes() for name, file in files.items()} == contents
    assert files["a"].samefile(files["b"])
    assert not files["a"].samefile(files["c"])
    assert sorted(path.name for path in (tmp_path / "runs" / "b").iterdir()) == ["frozen.safetensors"]
