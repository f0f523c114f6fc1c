"""A run's record, read back, whatever state it is in."""

import io
import json
import shutil

import pytest
from rich.console import Console

from fedmlic.record import create, read_json
from sim.console import duration, groups_table, number, results_table, spread_line
from sim.reports.show import show, summary


def printed(found, width=100):
    console = Console(file=io.StringIO(), width=width)
    show(found, console)
    return console.file.getvalue()


def test_a_complete_run(finished):
    found = summary(finished)

    assert found["status"] == "complete"
    assert [event["round"] for event in found["rounds"]] == [1, 2, 3, 4]
    assert found["result"] == read_json(finished / "result.json")
    assert found["best_round"] == found["result"]["best_round"]
    assert found["checkpoint"] == 4
    assert set(found["labels"]) == {"test", "val"}
    assert found["failures"] == []
    assert json.dumps(found, allow_nan=False)
    text = printed(found)
    assert text.count("four") == 2
    assert "6 clients, 4 a round, 4 rounds, seed 0" in text


def test_an_interrupted_run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with (tmp_path / "run" / "events.jsonl").open("a") as log:
        log.write('{"event":"rou')

    found = summary(tmp_path / "run")

    assert found["status"] == "interrupted or running"
    assert found["result"] is None
    assert len(found["rounds"]) == 4


def test_a_run_that_has_not_begun(tiny, tmp_path):
    create(tmp_path / "run", *tiny())

    found = summary(tmp_path / "run")

    assert (found["rounds"], found["checkpoint"], found["best_round"]) == ([], None, None)
    assert "interrupted or running" in printed(found)


def test_names_of_clients_warnings_and_labels_that_nobody_trained(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    names = [f"ward [{place}]" for place in "ABCDEF"]
    noted = {"warnings": ["something [odd]"], "untrained_labels": ["four"], "unannotated_labels": []}
    noted["client_names"] = names
    (tmp_path / "run" / "data.json").write_text(json.dumps(noted))

    found = summary(tmp_path / "run")

    assert noted.items() <= found.items()
    found["failures"] = [{"round": 1, "client": 2, "host": "h", "error": "broken"}]
    text = printed(found, 160)
    assert "warning: something [odd]" in text
    assert text.count("four *") == 2
    assert "2 ward [C]" in text
    assert f"client {found['balance']['slowest_client']} ward [" in text


def test_labels_and_reasons_with_brackets_are_shown_as_they_are(finished):
    found = summary(finished)
    found["labels"]["test"]["label"][0] = "[red]cat[/red]"
    found["failures"] = [{"round": 1, "client": 2, "host": "h", "error": "ValueError: [/oops] in ['a']\nTraceback"}]
    found["reason"] = "because [/dim]"

    text = printed(found, 140)

    for words in ("[red]cat[/red]", "ValueError: [/oops] in ['a']", "because [/dim]"):
        assert words in text
    assert "Traceback" not in text


def test_many_rounds_are_thinned_but_the_best_and_the_last_stay(finished):
    found = summary(finished)
    found["rounds"] = [{**found["rounds"][0], "round": number, "loss": 1000 + number} for number in range(1, 101)]
    found["best_round"] = 13

    text = printed(found)

    assert "13 *" in text
    assert "1100.000" in text
    assert text.count("\n") < 90


def test_notes_say_what_is_in_the_table(finished):
    found = summary(finished)
    found["balance"] = {"idle_share": 0.25, "slowest_client": 0, "slowest_in_rounds": 1, "slowest_seconds": 2.0}

    assert f"slowest in 1 of {len(found['rounds'])} rounds" in printed(found, 200)
    assert "* best on validation" in printed(found)
    found["best_round"] = None
    assert "best on validation" not in printed(found)


def test_what_chose_the_best_round_is_said(finished):
    """Where clients keep tensors the server evaluates nothing, and their held-out images choose."""
    found = summary(finished)
    for event in (*found["rounds"], *(model["metrics"] for model in found["models"].values())):
        for name in [name for name in event if name.startswith("server/")]:
            del event[name]

    text = " ".join(printed(found, 200).split())

    assert "* best on clients' held-out images" in text
    for best, words in ((4, "which is also the best on"), (2, "best: after round 2, chosen on")):
        console = Console(file=io.StringIO(), width=200)
        metrics = {"client/mAP/mean": 0.5}
        table = {"rounds": 4, "best_round": best, "metrics": metrics, "best_metrics": metrics, "seconds": 1.0}
        console.print(results_table(table))
        assert f"{words} clients' held-out images" in " ".join(console.file.getvalue().split())


def test_a_damaged_line_of_the_log_is_left_out(finished, tmp_path, caplog):
    shutil.copytree(finished, tmp_path / "run")
    log = tmp_path / "run" / "events.jsonl"
    log.write_text("rubbish\n" + log.read_text(encoding="utf-8"), encoding="utf-8")

    assert summary(tmp_path / "run")["rounds"] == summary(finished)["rounds"]
    assert "line 1 of" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (65, "1m05s"), (3599.7, "1h00m"), (7380, "2h03m")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_numbers_that_are_none_are_dashes():
    assert [number(value) for value in (None, float("nan"), "x", 0.12345, 2)] == ["-", "-", "-", "0.123", "2.000"]


def test_the_closing_table_shows_what_was_evaluated_and_nothing_else(finished):
    result = read_json(finished / "result.json")
    without = {**result, "metrics": {k: v for k, v in result["metrics"].items() if not k.startswith("server/val/")}}
    without["best_metrics"] = {}
    texts = []
    for found in (result, without):
        console = Console(file=io.StringIO(), width=120)
        console.print(results_table(found))
        texts.append(console.file.getvalue())

    assert "│ validation" in texts[0]
    assert "│ validation" not in texts[1]
    assert f"{result['metrics']['server/mAP']:.3f}" in texts[1]
    line = spread_line(result["metrics"])
    chance = f"{result['metrics']['client/mAP/chance']:.3f} for a random order"
    for words in (
        "worst",
        "over 6 of 6 clients",
        chance,
        "at least 1 present and 1 absent",
        "pairs of client and label",
    ):
        assert words in line
    assert spread_line({}) == ""
    nobody = {**result["metrics"], "client/mAP/num-clients": 0.0, "client/mAP/mean": None}
    assert "none of 6 clients has a label that counts" in spread_line(nobody)
    earlier = {f"client/mAP/{name}": 0.5 for name in ("mean", "std", "worst")} | {"client/mAP/num-clients": 4.0}
    assert "over 4 of 4 clients" in spread_line(earlier)


def test_the_worst_client_is_named(finished):
    found = summary(finished)
    metrics = found["result"]["metrics"]
    worst = min(found["client_evaluations"], key=lambda row: row["mAP"])

    assert worst["client"] == metrics["client/mAP/worst-client"]
    assert worst["mAP"] == metrics["client/mAP/worst"]
    assert f"(client {worst['client']})" in spread_line(metrics)
    names = [f"ward {letter}" for letter in "ABCDEF"]
    assert f"(client {worst['client']} {names[worst['client']]})" in spread_line(metrics, names)


def test_both_models_are_shown_by_their_names(finished):
    result = read_json(finished / "result.json")
    last = {"server/mAP": 0.25, "server/mAP/head": 0.5, "server/mAP/tail": 0.125, "server/num-labels/tail": 3.0}
    best = {"server/mAP": 0.75, "server/mAP/head": 0.625, "server/mAP/tail": 0.375}
    texts = []
    for changed in ({"best_round": 2}, {"best_round": 4}, {"best_round": 0}, {"best_round": 2, "best_metrics": {}}):
        shown = {**result, "rounds": 4, "metrics": last, "best_metrics": best, **changed}
        console = Console(file=io.StringIO(), width=80)
        console.print(results_table(shown), groups_table(shown, 20, 100))
        texts.append(" ".join(console.file.getvalue().split()))

    assert "test, last │ 0.250" in texts[0]
    assert "test, best │ 0.750" in texts[0]
    assert "last: the model after round 4; best: after round 2, chosen on validation" in texts[0]
    assert "tail, best │ 0.375" in texts[0]
    assert "head more than 100 times, tail fewer than 20" in texts[0]
    assert "which is also the best on validation" in texts[1]
    assert "tail │ 0.125 │ - │ - │ 3" in texts[1]
    assert "0.750" not in texts[1]
    for text in texts[2:]:
        assert "the model after round 4" in text
        assert "test │ 0.250" in text
    assert groups_table({**result, "metrics": {"server/mAP/head": 0.5}}, 20, 100) is None


def test_clients_and_metrics_of_the_method_are_shown(finished):
    found = summary(finished)
    for event in found["rounds"]:
        event.update({f"method/{name}": 10.0 * event["round"] for name in ("[b]", "c", "d", "e", "f")})

    text = printed(found, 200)

    assert "after round 4: mAP per client: mean" in text
    assert "by chance" in text
    assert "[b]" in text
    assert "40.000" in text
    assert "the method's sums over a round's clients (1 more in rounds.parquet)" in text


def test_labels_that_nobody_annotates_are_marked_and_have_numbers_of_their_own(finished):
    found = summary(finished)
    assert "nobody annotates" not in printed(found, 160)
    assert "**" not in printed(found, 160)
    found["untrained_labels"] = ["four", "two"]
    for event in found["labels"].values():
        event["annotated"] = [name not in {"four", "six"} for name in event["label"]]
    apart = {"mAP": 0.123, "prevalence": 0.045, "num-evaluable": 1.0, "num-labels": 2.0}
    for side in ("server", "server/val"):
        found["rounds"][-1] |= {f"{side}/{name}/unannotated": value for name, value in apart.items()}

    text = printed(found, 160)

    text = " ".join(text.split())
    for name in ("four **", "six **", "two *"):
        assert text.count(f"{name} ") == 2
    assert "** annotated on no training image: in no average but mAP/unannotated" in text
    assert "* present on no training image as annotated" in text
    assert "unannotated labels, test images: mAP 0.123 (a constant score: 0.045) over 1 of 2" in text
    assert "not annotated: test mAP of the labels that nobody annotates" in text
