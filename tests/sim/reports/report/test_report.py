"""The page: what it says equals the tables and scikit-learn, whatever state runs are in."""

import csv
import importlib.util
import json
import re
import shlex
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner

from fedmlic.errors import InputError
from fedmlic.experiment import split_settings
from fedmlic.record import create, open_run
from sim.command import app
from sim.commands.settings import read_settings
from sim.reports.report.again import command_of
from sim.reports.report.clients import clients_section
from sim.reports.report.gather import gather
from sim.reports.report.overview import results_section
from sim.reports.report.page import page_of
from sim.reports.report.read import find_runs, read_run
from sim.reports.report.tables import tables_of
from sim.reports.report.write import write_report

_spec = importlib.util.spec_from_file_location("balance_of_markup", Path(__file__).with_name("test_markup.py"))
_markup = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_markup)


def parsed(page):
    """The page's parser, after checking that it is well formed and ids are unique."""
    parser = _markup.Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    return parser


def rows_in(text):
    return list(csv.DictReader(text.splitlines()))


@pytest.fixture(scope="module")
def report(small_study):
    return gather([small_study])


@pytest.fixture(scope="module")
def tables(report):
    return {name: rows_in(text) for name, text in tables_of(report).items()}


@pytest.fixture(scope="module")
def page(report, tables):
    return page_of(report, list(tables))


def test_the_page_is_well_formed_and_forbids_the_network(page):
    parser = parsed(page)
    assert 'content="default-src &#x27;none&#x27;; img-src data:; style-src &#x27;sha256-' in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert " style=" not in page
    text = " ".join(parser.text)
    for words in ("Who holds what", "best on validation", "merged by", "1 of 2 runs of the study have not begun"):
        assert words in text


def test_every_chart_says_what_it_is(page):
    assert page.count("<svg") - page.count('aria-hidden="true"') == page.count('role="img"') > 8
    assert page.count('role="img"') == page.count("<desc")


def test_scores_of_the_page_are_those_of_the_models(report, tables, small_study):
    from sim.outcome import corpus_of, predictor_of

    run = small_study / "runs" / "bce-0"
    corpus = corpus_of(run)
    span = corpus.splits["test"]
    scores = predictor_of(run, "best").scores(corpus.images.take(np.arange(span.start, span.stop)))
    labels = corpus.labels.take(np.arange(span.start, span.stop))
    judged = report.looked[0].judged
    names = list(corpus.label_names)
    chosen = [names.index(name) for name in judged.label_names]

    seen = labels[:, chosen]
    assert [run.seed for run in judged.runs] == [0, 1]
    both = []
    for seed in (0, 1):
        made = predictor_of(small_study / "runs" / f"bce-{seed}", "best").scores(
            corpus.images.take(np.arange(span.start, span.stop))
        )
        both.append(np.asarray(made)[:, chosen])
    everything = (np.tile(seen, (2, 1)).ravel(), np.concatenate(both).ravel())
    observed, predicted = calibration_curve(*everything, n_bins=10, strategy="uniform")
    bins = [row for row in tables["reliability.csv"] if row["row"] == "1" and not row["label"] and row["predicted"]]
    assert sum(int(row["entries"]) for row in bins) == 2 * seen.size
    assert [float(row["observed"]) for row in bins] == pytest.approx(observed.tolist())
    assert [float(row["predicted"]) for row in bins] == pytest.approx(predicted.tolist(), abs=1e-6)
    for label in ("", judged.label_names[2]):
        columns = slice(None) if not label else [2]
        ece = [_ece(seen[:, columns].ravel(), scores[:, columns].ravel()) for scores in both]
        told = next(row for row in tables["calibration.csv"] if row["row"] == "1" and row["label"] == label)
        assert float(told["ece"]) == pytest.approx(statistics.fmean(ece), abs=1e-6)
        assert float(told["ece-std"]) == pytest.approx(statistics.stdev(ece), abs=1e-6)
        assert told["seeds"] == "0 1"
    recorded = {r["label"]: float(r["ap"]) for r in tables["labels.csv"] if r["row"] == "1" and r["split"] == "test"}
    seeds = [open_run(small_study / "runs" / f"bce-{seed}").tables()["labels"] for seed in (0, 1)]
    for name in judged.label_names[:3]:
        ap = []
        for seed, table in enumerate(seeds):
            best = read_run(small_study / "runs" / f"bce-{seed}").best_round
            found = table[(table["round"] == best) & (table["split"] == "test") & (table["label"] == name)]
            ap.append(float(found["ap"].iloc[0]))
        assert np.mean(ap) == pytest.approx(recorded[name])
        mine = average_precision_score(labels[:, names.index(name)], scores[:, names.index(name)])
        assert mine == pytest.approx(ap[0], abs=1e-6)


def _ece(states, scores):
    """By the bins of scikit-learn, which leaves out empty ones."""
    observed, predicted = calibration_curve(states, scores, n_bins=10, strategy="uniform")
    count = np.histogram(scores, np.linspace(0, 1, 11))[0]
    return float(np.abs(observed - predicted) @ count[count > 0] / len(scores))


def test_thresholds_and_errors_of_the_page_are_means_over_the_seeds(report, tables, page):
    judged = report.looked[0].judged
    chosen = [one.chosen for one in judged.thresholds]
    told = next(row for row in tables["calibration.csv"] if row["row"] == "1" and not row["label"])
    curve = [float(row["test-macro-F1"]) for row in tables["thresholds.csv"] if row["row"] == "1"]

    assert len(chosen) == 2
    assert float(told["threshold"]) == pytest.approx(statistics.fmean(chosen))
    assert float(told["threshold-std"]) == pytest.approx(statistics.stdev(chosen))
    assert curve == pytest.approx(((judged.thresholds[0].test + judged.thresholds[1].test) / 2).tolist())
    macro = [one.results["one per label"]["macro-F1"] for one in judged.thresholds]
    assert f"{statistics.fmean(macro):.3f} ± {statistics.stdev(macro):.3f}" in page
    assert "best on validation (rounds 1 to 2), seeds 0, 1" in page
    assert "of one seed gave" in page


def test_what_one_seed_leaves_out_counts_for_the_others_alone(small_study, tmp_path):
    """A label that nobody annotates at one seed is judged by the models of the other seeds."""
    shutil.copytree(small_study, tmp_path / "study")
    data = tmp_path / "study" / "runs" / "bce-1" / "data.json"
    data.write_text(json.dumps(json.loads(data.read_text()) | {"unannotated_labels": ["three"]}))
    judged = gather([tmp_path / "study"], scored=1).looked[0].judged
    place = judged.label_names.index("three")

    assert len(judged.label_names) == 10
    assert np.isnan(judged.ece[:, 1 + place]).tolist() == [False, True]
    assert judged.each[place].count.sum() * 2 == judged.each[0].count.sum()
    assert np.isnan([one.per_label[place] for one in judged.thresholds]).tolist() == [False, True]


def test_the_matrix_is_scikit_learns(report, small_study):
    from fedmlic.federation import build_federation
    from sim.outcome import corpus_of, predictor_of

    sites = report.looked[0].sites
    assert sites.models == ("global, best on validation (round 1)", "local-only, client 2")
    assert sites.owners == (-1, 2)
    paths = (small_study / "runs" / "bce-0", small_study / "runs" / "local")
    corpus = corpus_of(paths[0])
    experiment = report.looked[0].run.experiment
    names = ("partition", "regime", "num_clients", "seed", "holdout_fraction")
    federation = build_federation(corpus, **{name: getattr(experiment, name) for name in names})
    for line, path in enumerate(paths):
        predictor = predictor_of(path, "best")
        for column, client in enumerate(sites.clients):
            rows, labels = federation.holdout.of(client)
            scores = predictor.scores(corpus.images.take(rows))
            ap = []
            for label in range(labels.shape[1]):
                known = labels[:, label] >= 0
                if 0 < (labels[known, label] == 1).sum() < known.sum():
                    ap.append(average_precision_score(labels[known, label], scores[known, label]))
            assert np.mean(ap) == pytest.approx(sites.map[line, column], abs=1e-6)
            assert len(ap) == sites.num_labels[column]


def test_holdings_are_the_federations_counts(report, tables):
    held = report.held[0]
    found = [row for row in tables["holdings.csv"] if row["client"] == "1"]

    assert [int(row["annotated"]) for row in found] == held.holdings.annotated[1].tolist()
    assert sum(int(row["annotated"]) > 0 for row in found) == 4  # labels per client
    assert [each.run.seed for each in report.held] == [0]


def test_differences_are_scipys(report, tables):
    first, second = ([row.values("server/mAP", "best")[seed] for seed in (0, 1)] for row in report.own)
    pair = next(row for row in tables["comparison.csv"] if row["kind"] == "difference")
    found = stats.permutation_test((np.subtract(first, second),), np.mean, permutation_type="samples")

    assert float(pair["p"]) == pytest.approx(found.pvalue)
    assert abs(float(pair["mean"])) == pytest.approx(abs(np.mean(np.subtract(first, second))))


def test_the_command_plays_the_same_experiment(report):
    for run in report.runs:
        words = shlex.split(command_of(run))
        assert words[:2] == ["fedmlic", "run"]
        experiment, _ = split_settings(read_settings(words[2:]))
        assert experiment == run.experiment


NAMES = [
    "<b>&\"'",
    "</script><script>alert(1)</script>",
    "شجرة خضراء",
    "a\x00\x1b[31mb",
    "]]>",
    "=1+1",
    "long " * 30,
    "",
]


def test_names_of_any_letters_stay_text(write_run, tmp_path):
    run = write_run(tmp_path / "run <i>&", NAMES, warning="<script>alert(2)</script>")
    found = write_report([run], tmp_path / "out", scored=0)
    page = Path(found["page"]).read_text(encoding="utf-8")
    parser = parsed(page)

    text = "".join(parser.text)
    assert page.count("<script") == 1 + page.count('<script type="application/json">')
    assert "<i>" not in page
    for name in (*NAMES[:3], "<script>alert(2)</script>", "run <i>&"):
        assert name in text
    assert "\\x00\\x1b[31mb" in text


def test_fifty_runs_are_less_than_three_megabytes(write_run, tmp_path):
    names = [f"label {number}" for number in range(40)]
    runs = [
        write_run(tmp_path / f"run-{row}-{seed}", names, 60, seed=seed, **{"learning-rate": (row + 1) / 1000})
        for row in range(10)
        for seed in range(5)
    ]
    found = write_report(runs, tmp_path / "out", scored=0)

    assert found["runs"] == 50
    assert len(found["rows"]) == 10
    assert found["bytes"] < 2_000_000  # images of four rows add less than half a megabyte
    parsed(Path(found["page"]).read_text(encoding="utf-8"))


def test_many_labels_stay_small(write_run, tmp_path):
    run = write_run(tmp_path / "run", [f"label {number}" for number in range(1628)], 40)
    found = write_report([run], tmp_path / "out", scored=0)

    assert found["bytes"] < 700_000
    assert "40 of 1,628 labels" in Path(found["page"]).read_text(encoding="utf-8")
    with (tmp_path / "out" / "tables" / "labels.csv").open(encoding="utf-8") as file:
        assert sum(1 for _ in file) == 1629


@pytest.mark.parametrize(("num_rounds", "names"), [(1, ["one"]), (1, ["one", "two"]), (3, ["one"])])
def test_little_is_shown_as_well(write_run, tmp_path, num_rounds, names):
    found = write_report([write_run(tmp_path / "run", names, num_rounds)], tmp_path / "out", scored=2)

    parsed(Path(found["page"]).read_text(encoding="utf-8"))
    assert any("no checkpoint" in text for text in found["problems"])


def test_a_run_that_has_not_begun(tiny, tmp_path):
    create(tmp_path / "run", *tiny())
    page = Path(write_report([tmp_path / "run"], tmp_path / "out")["page"]).read_text(encoding="utf-8")

    assert "is not complete: interrupted or still running, before its first round ended" in page
    assert "No round was completed" in page


def test_failed_and_damaged_runs_say_so(small_study, tmp_path):
    for name in ("failed", "damaged", "settings"):
        shutil.copytree(small_study / "runs" / "bce-0", tmp_path / name)
    (tmp_path / "failed" / "result.json").unlink()
    with (tmp_path / "failed" / "events.jsonl").open("a") as log:
        log.write(json.dumps({"event": "failed", "reason": f"RunFailedError: too few at {tmp_path}/failed/x"}) + "\n")
    for file in (tmp_path / "damaged" / "checkpoints").glob("*.safetensors"):
        file.write_bytes(b"no tensors")
    (tmp_path / "damaged" / "environment.json").write_text("{")
    (tmp_path / "settings" / "experiment.json").write_text("{")
    found = write_report([tmp_path / name for name in ("failed", "damaged", "settings")], tmp_path / "out")
    text = "".join(parsed(Path(found["page"]).read_text(encoding="utf-8")).text)

    assert "failed failed after round 3: RunFailedError" in text
    assert "settings cannot be read" in text
    assert "environment.json to be JSON" in text
    assert found["runs"] == 2


def test_a_damaged_checkpoint_is_told_without_its_place(small_study, tmp_path):
    shutil.copytree(small_study / "runs" / "bce-0", tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints").glob("*.safetensors"):
        file.write_bytes(b"no tensors")
    report = gather([tmp_path / "run"])
    page = page_of(report, [])

    assert "to have the hash its manifest states" in page
    assert str(tmp_path) not in page


def test_the_table_of_clients_is_used_where_there_is_one(small_study, tmp_path):
    import pandas as pd

    shutil.copytree(small_study / "runs" / "bce-0", tmp_path / "run")
    rows = [{"round": 3, "client": c, "split": "holdout", "mAP": c / 10, "chance": 0.2, "error": ""} for c in range(6)]
    pd.DataFrame(rows).to_parquet(tmp_path / "run" / "client-evaluations.parquet")
    found = gather([tmp_path / "run"], scored=0)

    assert found.looked[0].per_client.source == "the record, after round 3"
    assert found.looked[0].per_client.map.tolist() == pytest.approx([c / 10 for c in range(6)])


def test_a_folder_of_something_else_is_refused(small_study, tmp_path):
    (tmp_path / "index.html").write_text("<p>mine</p>")
    with pytest.raises(InputError, match="to be an earlier report, got another page"):
        write_report([small_study], tmp_path)
    with pytest.raises(InputError, match="to be the folder of a run or of a study"):
        find_runs([tmp_path])


def test_an_earlier_report_is_replaced_with_its_tables(write_run, tmp_path):
    run = write_run(tmp_path / "run", ["one", "two"])
    write_report([run], tmp_path / "out", scored=0)
    (tmp_path / "out" / "tables" / "old.csv").write_text("old")
    found = write_report([run], tmp_path / "out", scored=0)

    assert sorted(f"tables/{file.name}" for file in (tmp_path / "out" / "tables").iterdir()) == sorted(found["tables"])


def test_the_command(write_run, tmp_path):
    run = write_run(tmp_path / "run", ["one", "two"])
    done = CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "out"), "--json", "--scored", "0"])
    wrong = CliRunner().invoke(app, ["report", str(tmp_path / "none"), "--out", str(tmp_path / "out")])

    assert done.exit_code == 0
    assert json.loads(done.stdout)["runs"] == 1
    assert wrong.exit_code == 2


def test_annotations_of_a_row_are_those_of_its_own_federation(report):
    """The second row gets a federation with twice the annotations; the reference was dealt the first row's images."""
    place = report.rows.index(report.own[1])
    run = report.rows[place].runs[0]
    other = replace(run, settings={**run.settings, "regime": "another"})
    rows = list(report.rows)
    rows[place] = replace(rows[place], runs=[other, *rows[place].runs[1:]])
    holdings = report.held[0].holdings
    twice = replace(holdings, annotated=2 * holdings.annotated, positives=2 * holdings.positives)
    held = [replace(report.held[0], rows=[0]), replace(report.held[0], run=other, rows=[place], holdings=twice)]
    changed = replace(report, rows=rows, held=held)

    found = [row for row in rows_in(tables_of(changed)["labels.csv"]) if row["split"] == "test"]
    counts = {number: [int(row["annotations"]) for row in found if row["row"] == number] for number in "123"}
    expected = holdings.annotated.sum(axis=0).tolist()
    assert counts == {"1": expected, "2": [2 * count for count in expected], "3": expected}
    text = page_of(changed, [])
    assert "annotations (row 1)" in text
    assert "say present (row 2)" in text
    assert "annotations (row" not in page_of(report, [])


def rewritten(run, drop=(), **about):
    """The same run without some metrics, and with other values of its rounds and result."""
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    for event in lines:
        if event["event"] == "round":
            event.update({name.replace("_", "-"): value for name, value in about.items()})
            for name in drop:
                event.pop(name, None)
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in lines), encoding="utf-8")
    result = json.loads((run / "result.json").read_text())
    metrics = {name: value for name, value in result["metrics"].items() if name not in drop}
    (run / "result.json").write_text(json.dumps({**result, **about, "metrics": metrics}))
    return run


@pytest.mark.parametrize(
    ("missing", "metric", "model"),
    [
        ({"drop": ["server/val/mAP"], "best_round": 0}, "server/mAP", "after the last round"),
        ({"drop": ["server/mAP"]}, "server/val/mAP", "best on validation"),
    ],
)
def test_rows_are_compared_by_what_the_page_shows(write_run, tmp_path, missing, metric, model):
    """Without validation images the last model is compared, without test images validation mAP."""
    runs = [
        rewritten(write_run(tmp_path / f"{method}-{seed}", ["one", "two"], seed=seed, method=method), **missing)
        for method in ("bce()", "asl()")
        for seed in (0, 1)
    ]
    report = gather(runs, scored=0)

    assert report.uncompared == ""
    assert (report.comparison.metric, report.comparison.model) == (metric, model)
    for group, row in zip(report.comparison.groups, report.rows, strict=True):
        assert dict(group.values) == row.values(metric, "best") != {}


def test_two_folders_of_one_run_are_named_without_their_place(write_run, tmp_path):
    """With equal results the run counts once; with different ones the rows are not compared."""
    asl = write_run(tmp_path / "asl", ["one", "two"], method="asl()")
    runs = [write_run(tmp_path / name, ["one", "two"], method="bce()") for name in ("bce", "copy")]
    same = gather([asl, *runs], scored=0)
    rewritten(runs[1], ["server/mAP"])
    result = json.loads((runs[1] / "result.json").read_text())
    (runs[1] / "result.json").write_text(json.dumps({**result, "metrics": {"server/mAP": 0.9}}))
    other = gather([asl, *runs], scored=0)

    assert "copy is the same run as bce and counts once" in same.comparison.notes
    assert other.uncompared.startswith("Expected bce and copy, which hold the same experiment")
    assert str(tmp_path) not in page_of(same, []) + page_of(other, [])


def test_seeds_that_lack_the_metric_are_not_counted(write_run, tmp_path):
    runs = [write_run(tmp_path / f"run-{seed}", ["one", "two"], seed=seed) for seed in range(3)]
    rewritten(runs[2], drop=["server/mAP", "server/val/mAP"])
    report = gather(runs, scored=0)

    assert report.rows[0].seeds == [0, 1, 2]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", results_section(report))
    assert [re.sub("<[^>]*>", "", cell) for cell in cells][-2] == "2"


def test_a_random_order_is_that_of_each_rows_images(write_run, tmp_path):
    import pandas as pd

    runs = [write_run(tmp_path / method, ["one", "two"], method=f"{method}()") for method in ("bce", "asl")]
    for run, chance in zip(runs, (0.21, 0.37), strict=True):
        rows = [{"round": 5, "client": c, "split": "holdout", "mAP": 0.5, "chance": chance} for c in range(3)]
        pd.DataFrame(rows).to_parquet(run / "client-evaluations.parquet")
    report, same = gather(runs, scored=0), gather(runs[:1], scored=0)
    table = clients_section(report)
    table = table[table.index("mAP by client") :]
    first = re.findall(r"<td[^>]*>(.*?)</td>", table)[:4]

    assert first == ["0.500", "0.500", "0.210", "0.370"]
    assert ">random order 2<" in table
    assert "The tick is a random order" not in clients_section(report)
    assert "The tick is a random order" in clients_section(same)


@pytest.fixture(scope="module")
def personal(play, tmp_path_factory):
    """A run whose clients keep heads of their own and whose best round is not its last."""
    path = tmp_path_factory.mktemp("personal") / "run"
    settings = {"mods": "fedper()", "strategy": "fedavg()", "evaluate_clients_every": 1, "num_rounds": 3}
    play(path, **settings, seed=0, learning_rate=0.5)  # so high a rate that it gets worse in every round
    return path


def test_everything_of_a_personal_run_is_of_one_round(personal):
    """The matrix is computed from checkpoints, the rest is the record: both say the same of the named round."""
    import pandas as pd

    report = gather([personal])
    run, looked = report.rows[0].first, report.looked[0]
    best = run.best_round
    recorded = pd.read_parquet(personal / "client-evaluations.parquet")
    expected = dict(recorded[recorded["round"] == best].set_index("client")["mAP"])

    assert run.is_personal
    assert 0 < best < run.last_round
    assert looked.model == f"each client's own (round {best})"
    assert looked.per_client.source == f"the record, after round {best}"
    assert dict(zip(looked.per_client.clients, looked.per_client.map, strict=True)) == pytest.approx(
        expected, nan_ok=True
    )
    own = {
        client: looked.sites.map[line, looked.sites.clients.index(client)]
        for line, client in enumerate(looked.sites.owners)
    }
    assert own == pytest.approx({client: expected[client] for client in own}, abs=1e-6, nan_ok=True)
    event = next(event for event in run.evaluations if event["round"] == best)
    assert report.rows[0].over_clients("client/mAP/mean", "best") == {run.seed: event["client/mAP/mean"]}
    assert report.rows[0].values("client/mAP/mean", "best") == {run.seed: event["client/mAP/mean"]}
    page = page_of(report, [])
    assert f"each client&#x27;s own, round {best}" in page
    assert f"round {run.last_round})" not in clients_section(report)


def test_runs_of_other_images_are_no_row_and_both_are_named(write_run, tmp_path):
    """Two seeds with equal settings, between which the labels in the folder were changed."""
    paths = [write_run(tmp_path / f"run-{seed}", ["one", "two"], seed=seed) for seed in range(2)]
    assert gather(paths, scored=0).rows[0].seeds == [0, 1]
    for path, corpus in zip(paths, "ab", strict=True):
        about = json.loads((path / "data.json").read_text())
        (path / "data.json").write_text(json.dumps({**about, "corpus": corpus, "federation": corpus}))

    with pytest.raises(InputError, match=rf"{paths[0]} and {paths[1]}, whose settings name the same data set"):
        gather(paths, scored=0)
    refused = CliRunner().invoke(app, ["report", *map(str, paths), "--out", str(tmp_path / "page")])
    assert refused.exit_code == 2
    assert not (tmp_path / "page").exists()


def test_a_run_of_other_images_that_completed_no_round_is_named(write_run, tmp_path):
    """It failed before the labels in the folder were mended; the others were played since."""
    paths = [write_run(tmp_path / f"run-{seed}", ["one", "two"], seed=seed) for seed in range(3)]
    for path, corpus in zip(paths, "abb", strict=True):
        about = json.loads((path / "data.json").read_text())
        (path / "data.json").write_text(json.dumps({**about, "corpus": corpus}))
    (paths[0] / "events.jsonl").write_text(json.dumps({"event": "failed", "reason": "a label is missing"}) + "\n")
    (paths[0] / "result.json").unlink()

    report = gather(paths, scored=0)

    assert report.rows[0].seeds == [0, 1, 2]
    assert [text.partition(",")[0] for text in report.problems] == ["run-0 has completed no round"]
    assert "run-0 has completed no round, and was given other images or labels" in page_of(report, [])
    assert gather(paths[1:], scored=0).problems == []


def test_the_table_of_labels_counts_seeds_of_a_local_only_row_once(small_study, play, tmp_path):
    """Two clients of seed 0: one seed with the mean of both."""
    study = tmp_path / "study"
    shutil.copytree(small_study, study)
    about = json.loads((study / "study.json").read_text())
    alone = {"strategy": "fedavg()", "single_client": "3", "cohort_size": 0, "num_rounds": 2}
    alone |= {"statistics_min_clients": 1, "statistics_min_images": 1}
    play(study / "runs" / "local-3", method="bce()", seed=0, **alone)
    about["rows"][-1]["runs"][1] = {"seed": 0, "run": "runs/local-3"}
    (study / "study.json").write_text(json.dumps(about))

    lines = rows_in(tables_of(gather([study], scored=0))["labels.csv"])
    runs = [read_run(study / "runs" / name) for name in ("local", "local-3")]
    histories = [run.labels["test"] for run in runs]
    rounds = [history.at(run.round_of("best")) for history, run in zip(histories, runs, strict=True)]

    local = [line for line in lines if line["row-label"] == "local-only, bce" and line["split"] == "test"]
    assert {line["seeds"] for line in local} <= {"0", "1"}
    assert {line["ap-std"] for line in local} == {""}
    for place, line in enumerate(local):
        counts = [history.annotated[place] for history in histories]
        values = [
            history.ap[number, place]
            for history, number, counted in zip(histories, rounds, counts, strict=True)
            if counted or not any(counts)
        ]
        assert float(line["ap"]) == pytest.approx(np.mean(values))
