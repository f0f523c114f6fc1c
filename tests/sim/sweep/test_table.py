"""The closing table of a sweep: which runs are one line."""

from sim.sweep.start import reference_rows
from sim.sweep.study import check_study, rows_of
from sim.sweep.table import study_table


def table(rows, scores):
    """What ``StudyFolder.table`` gives of complete runs of two seeds."""
    done = {"state": "complete", "run": "x", "rounds": 1, "best-round": 1, "weights-sha256": ""}
    return [
        {**row.values, "reference": row.reference, "seed": seed, **done, "server/mAP": score + seed / 10}
        for row, score in zip(rows, scores, strict=True)
        for seed in (0, 1)
    ]


def test_clients_that_are_an_axis_are_rows_of_their_own():
    rows = rows_of(check_study({"axes": {"single-client": ["0", "1"], "method": ["bce()", "asl()"]}}))
    grid = study_table(table(rows, [0.1, 0.2, 0.5, 0.6]))

    assert grid.heads[0] == "method, single-client"
    assert [line[0] for line in grid.rows] == ["bce, 0", "asl, 0", "bce, 1", "asl, 1"]
    assert [line[1].split()[0] for line in grid.rows] == ["0.150", "0.250", "0.550", "0.650"]


def test_clients_of_local_only_training_are_three_lines():
    study = check_study(
        {"base": {"num-clients": 3, "cohort-size": 3}, "axes": {"method": ["bce()"]}, "references": ["local-only"]}
    )
    rows = rows_of(study)
    rows += reference_rows(rows, study.references, lambda _: 3)
    grid = study_table(table(rows, [0.5, 0.1, 0.3, 0.2]))

    assert [line[0] for line in grid.rows] == [
        "bce",
        *(f"local-only {kind}, bce" for kind in ("mean", "worst", "spread")),
    ]
    assert [line[1].split()[0] for line in grid.rows[:3]] == ["0.550", "0.250", "0.150"]
