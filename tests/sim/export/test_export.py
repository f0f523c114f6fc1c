"""An exported model gives the run's probabilities, and nothing is left of one that does not."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from PIL import Image
from typer.testing import CliRunner

from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.images import decode
from fedmlic.learner import build_learner
from sim.command import app
from sim.export import formats, network
from sim.export.card import card
from sim.export.export import Choice, export
from sim.export.facts import gather, model_in_words
from sim.export.formats import load_model, write_onnx, write_program
from sim.export.network import Sample, exported_program
from sim.outcome import about_of, corpus_of, predictor_of, score_split, thresholds_of
from sim.predict import Predictor
from sim.thresholds import fit

runtime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

NAMES = ("one", "two", "three", "four")


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """A run in all formats of a model, in one folder."""
    folder = tmp_path_factory.mktemp("exported") / "deep" / "out"
    targets = dict.fromkeys(("onnx", "torch-export", "safetensors"), folder)
    return folder, export(finished, targets, Choice(precision=0.6, min_entries=3))


@pytest.fixture(scope="module")
def others(finished):
    """Images that the export was not compared on, and what the run's best model says of them."""
    images = corpus_of(finished).images.take(np.arange(40, 47))
    return images, predictor_of(finished).scores(images)


def test_onnxruntime_gives_the_same_probabilities_of_other_images(exported, others):
    images, expected = others
    session = runtime.InferenceSession(str(exported[0] / "model.onnx"), providers=["CPUExecutionProvider"])

    for count in (1, 2, len(images)):
        found = session.run(None, {"images": images[:count]})[0]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:count], atol=1e-5)


def test_the_program_needs_nothing_but_torch(exported, others):
    images, expected = others
    module = torch.export.load(str(exported[0] / "model.pt2")).module()

    for count in (1, len(images)):
        np.testing.assert_allclose(module(torch.from_numpy(images[:count])).numpy(), expected[:count], atol=1e-5)


def test_tensors_and_settings_give_the_same_model(exported, others):
    images, expected = others

    loaded = load_model(exported[0])

    assert loaded.label_names == predictor_of_names(exported[0])
    np.testing.assert_array_equal(loaded.scores(images), expected)


def predictor_of_names(folder):
    return tuple(json.loads((folder / "labels.json").read_text())["labels"])


def test_labels_and_thresholds_are_in_the_model_too(exported):
    folder, _ = exported
    stored = {entry.key: entry.value for entry in onnx.load(str(folder / "model.onnx")).metadata_props}
    rows = json.loads((folder / "thresholds.json").read_text())["labels"]

    assert json.loads(stored["labels"]) == list(predictor_of_names(folder))
    for rule in ("fixed", "best-f1", "precision"):
        assert json.loads(stored["thresholds"])[rule] == [row[rule]["value"] for row in rows]
    assert [row["label"] for row in rows] == json.loads(stored["labels"])
    assert any(not row["best-f1"]["why_fixed"] for row in rows)


def test_the_files_and_the_report_agree(exported, finished):
    folder, report = exported
    about = json.loads((folder / "export.json").read_text())
    result = json.loads((finished / "result.json").read_text())

    assert report["written"][0]["files"] == sorted(file.name for file in folder.iterdir())
    assert about["round"] == report["round"] == result["best_round"]
    assert set(about["parity"]) == {"onnx", "torch-export", "safetensors"}
    assert all(each["largest"] <= each["tolerance"] for each in about["parity"].values())
    assert not list(folder.parent.glob(".*"))


def test_the_results_are_those_that_the_run_recorded(exported, finished):
    about = json.loads((exported[0] / "export.json").read_text())
    rounds = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    recorded = {each["round"]: each["server/mAP"] for each in rounds if each["event"] == "round"}

    assert about["test"]["mAP"] == pytest.approx(recorded[about["round"]], abs=1e-6)
    assert len(about["per_label"]) == len(predictor_of_names(exported[0]))


def test_the_card_says_what_the_model_is_and_what_it_is_not_for(exported):
    text = (exported[0] / "README.md").read_text()

    for part in (
        "(best on validation",
        "`val` chose the round and the thresholds; `test` is what the results below are measured on",
        "glyphs as bundled with scikit-learn",
        "label_subset(labels_per_client=4)",
        "## What it must not be used for",
        "fedmlic run",
        "fitted on 30 validation images",
        "prevalence",
    ):
        assert part in text
    assert str(exported[0]) not in text


@pytest.fixture(scope="module")
def facts(finished):
    """A function: what is known of a run's model, with validation images or as if there were none."""
    predictor, corpus = predictor_of(finished), corpus_of(finished)
    test = score_split(predictor, corpus, "test")
    names, about = predictor.label_names, about_of(finished, predictor)
    none = np.zeros((0, len(names)), np.float32), np.zeros((0, len(names)), np.int8)

    def made(which="best", *, val=True):
        fitted = thresholds_of(finished, predictor, corpus) if val else fit(*none, names, about=about)
        return gather(finished, predictor, corpus, fitted, which, test)

    return made


def test_the_card_names_what_validation_and_test_images_did(facts):
    """Nothing chose the round of the last model; without images nothing was chosen or measured."""
    last, without = card(facts("last"), {}), card(facts(val=False), {})
    unmeasured = card(replace(facts(), test=None, test_at={}), {})

    assert "alone; `val` chose the thresholds; `test` is" in last
    assert "the round and" not in last
    assert "there are no validation images, so nothing was chosen on any; `test` is" in without
    assert "`val`" not in without
    assert "fitted on" not in without
    assert "there are no test images, so no result was measured." in unmeasured
    assert "`test` is" not in unmeasured


def test_names_in_the_card_are_no_markup(facts):
    found = facts()
    names = ("<b>x</b>&<script>alert(1)</script>", "bar|x\\|y", *found.label_names[2:])
    record = {**found.record, "unannotated_labels": names[:1], "untrained_labels": names[:2], "warnings": ["<i>w</i>"]}
    data = {**found.data, "name": "<u>set</u>", "licence": "<s>none</s>"}
    text = card(replace(found, label_names=names, record=record, data=data), {})
    html = MarkdownIt("commonmark").enable("table").render(text)

    assert not re.findall(r"<(?:b|script|i|u|s)>", html)
    for name in ("&lt;b&gt;x&lt;/b&gt;&amp;&lt;script&gt;alert(1)&lt;/script&gt; **</td>", "<td>bar|x\\|y</td>"):
        assert name in html
    assert "&lt;s&gt;none&lt;/s&gt;" in html


def test_a_best_round_that_is_not_kept_is_said():
    """``fedmlic predict`` says the same; a round was chosen, but its checkpoint is gone."""
    folder = SimpleNamespace(
        checkpoints=lambda: [3, 4],
        checkpoint_values=lambda _: {"best_round": 2},
        settings=lambda: (SimpleNamespace(num_rounds=4), None),
    )

    assert model_in_words(folder, 4, None) == "after round 4 of 4 (the last round, the best, of round 2, is not kept)"
    assert model_in_words(folder, 4, 1).endswith("is not kept), with the tensors that client 1 keeps to itself")


@pytest.mark.parametrize(
    ("best", "words"),
    [
        (3, "after round 3 of 5 (best on {}, the last so far)"),
        (0, "after round 3 of 5 (the last so far, none was chosen on {})"),
    ],
)
def test_the_card_says_on_which_images_a_round_was_best(best, words):
    """Where clients keep tensors the server has no model to evaluate."""
    folder = SimpleNamespace(
        checkpoints=lambda: [3],
        checkpoint_values=lambda _: {"best_round": best},
        settings=lambda: (SimpleNamespace(num_rounds=5), None),
    )

    whose = ", with the tensors that client 1 keeps to itself"
    assert model_in_words(folder, 3, None) == words.format("validation")
    assert model_in_words(folder, 3, 1) == words.format("clients' held-out images") + whose


def test_the_code_of_the_card_reads_files_as_training_did(exported, others, tmp_path, monkeypatch):
    folder, _ = exported
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    files = {}
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (50, 70, 3)), ("a.jpg", (300, 200, 3))):
        files[name] = tmp_path / name
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(files[name])
    space = {}
    exec(code[0], space)  # noqa: S102

    height, _, channels = others[0].shape[1:]
    for file in files.values():
        np.testing.assert_array_equal(space["read"](file), decode(file, height, channels, "squash"))
    for block in code[1:]:
        exec(block.replace('"a.jpg"', repr(str(files["a.jpg"]))), space)  # noqa: S102
        found = np.asarray(torch.as_tensor(space["probabilities"]).detach())
        expected = load_model(folder).scores(np.stack([space["read"](files["a.jpg"])]))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(code) == 4


# Other methods, models and inferences


def predictor(**settings):
    learner = build_learner(Experiment(**{"model": "small_cnn(width=8)", **settings}), NAMES, (32, 32, 3))
    return Predictor(learner, NAMES, 1, 0.5)


def sample():
    return Sample(np.random.default_rng(3).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8), "test")


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "fedlgt(layers=1)"},
        pytest.param({"method": "bce()", "inference": "patching()"}, marks=pytest.mark.slow),
        pytest.param({"method": "fedlgt(layers=1)", "inference": "patching()"}, marks=pytest.mark.slow),
        pytest.param({"method": "asl()", "model": "resnet(depth=18, norm='pooled')"}, marks=pytest.mark.slow),
        pytest.param({"method": "bce()", "model": "timm(name='test_resnet')"}, marks=pytest.mark.slow),
        pytest.param({"method": "query2label()"}, marks=pytest.mark.slow),
        pytest.param({"method": "ctran()"}, marks=pytest.mark.slow),
        pytest.param({"method": "hsvlt()", "model": "convnext(image_size=32)"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_methods_with_inputs_of_their_own_and_other_ways_to_ask(settings, tmp_path):
    asked, images = predictor(**settings), sample()
    expected = asked.scores(images.images)

    parity = write_onnx(tmp_path, exported_program(asked), {"labels": list(NAMES)}, expected, images)

    assert parity.largest < 1e-5
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    turned = session.run(None, {"images": images.images[::-1].copy()})[0]
    np.testing.assert_allclose(turned[::-1], expected, atol=1e-5)


def test_weights_are_written_once(tmp_path):
    """The tensors of a network in memory are views of one vector."""
    asked, images = predictor(method="bce()"), sample()

    write_program(tmp_path, exported_program(asked), asked.scores(images.images), images)

    tensors = asked.learner.resident.network.state_dict().values()
    assert (tmp_path / "model.pt2").stat().st_size < 200_000 + 2 * sum(4 * tensor.numel() for tensor in tensors)


def test_the_run_s_network_is_left_as_it_is():
    asked = predictor(method="bce()")
    before = {name: parameter.requires_grad for name, parameter in asked.learner.resident.network.named_parameters()}

    exported_program(asked)

    assert before == {n: p.requires_grad for n, p in asked.learner.resident.network.named_parameters()}
    assert any(before.values())


def test_a_method_that_looks_at_numbers_is_refused_with_the_reason():
    asked = predictor(method="bce()")
    method = asked.learner.method

    def looks(net, images):
        return method.predict(net, images) * (2 if float(images.mean()) > 0 else 1)

    changed = Predictor(
        build_learner(Experiment(method="bce()", model="small_cnn(width=8)"), NAMES, (32, 32, 3)), NAMES, 1, 0.5
    )
    object.__setattr__(changed.learner, "method", method._replace(predict=looks))
    with pytest.raises(InputError, match=r"Expected a model that torch.export can write down .* --safetensors"):
        exported_program(changed)


# What goes wrong


def everything_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "name",
    ["safetensors", pytest.param("onnx", marks=pytest.mark.slow), pytest.param("torch-export", marks=pytest.mark.slow)],
)
def test_nothing_is_left_of_a_model_that_differs(finished, tmp_path, monkeypatch, name):
    monkeypatch.setattr(network, "TOLERANCE", -1.0)

    with pytest.raises(InputError, match="to give the run's probabilities"):
        export(finished, {name: tmp_path / "new" / "out"})
    assert everything_below(tmp_path) == []


def test_a_folder_that_is_in_use_is_refused_before_anything_is_done(finished, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(InputError, match="new or empty folder"):
        export(finished, {"safetensors": tmp_path})
    with pytest.raises(InputError, match="outside the run"):
        export(finished, {"safetensors": finished / "out"})
    with pytest.raises(InputError, match="beside each other"):
        export(finished, {"safetensors": tmp_path / "a", "torch-export": tmp_path / "a" / "b"})
    with pytest.raises(InputError, match="Expected a format, got none"):
        export(finished, {})
    assert everything_below(tmp_path) == ["notes.txt"]


def test_an_empty_folder_is_used(finished, tmp_path):
    (tmp_path / "out").mkdir()

    export(finished, {"safetensors": tmp_path / "out"})

    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_the_extra(finished, tmp_path, monkeypatch, package):
    def missing(name):
        if name == package:
            raise ImportError(name)
        return onnx

    monkeypatch.setattr(formats.importlib, "import_module", missing)
    with pytest.raises(InputError, match=rf"Expected the package {package} .* pip install 'fedmlic\[export\]'"):
        export(finished, {"onnx": tmp_path / "out"})
    assert everything_below(tmp_path) == []


@pytest.fixture
def damaged(finished, tmp_path):
    """A copy of the run, all checkpoints of which have lost their last byte."""
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    for file in path.glob("checkpoints/*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    return path


@pytest.mark.parametrize("name", ["onnx", "safetensors", "ro-crate"])
def test_a_damaged_checkpoint_is_refused(damaged, tmp_path, name):
    with pytest.raises(InputError, match="to have the hash its manifest states"):
        export(damaged, {name: tmp_path / "out"})
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_a_client_is_refused_where_all_share_one_model(finished, tmp_path):
    with pytest.raises(InputError, match="Expected no client"):
        export(finished, {"safetensors": tmp_path / "out"}, Choice(client=1))


def test_tensors_that_do_not_fit_the_settings_are_refused(exported, tmp_path):
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(exported[0] / file, tmp_path / file)
    about = json.loads((tmp_path / "config.json").read_text())
    about["experiment"]["model"] = "small_cnn(width=8)"
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"to hold the tensors of the network of .*config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="to be as 'fedmlic export' writes it"):
        load_model(tmp_path)


def test_last_and_best_are_told_apart(finished, tmp_path):
    result = json.loads((finished / "result.json").read_text())

    found = export(finished, {"safetensors": tmp_path / "out"}, Choice("last"))

    assert found["round"] == result["rounds"]
    assert found["model"].startswith(f"after round {result['rounds']}")
    np.testing.assert_array_equal(
        load_model(tmp_path / "out").scores(sample_images(finished)),
        predictor_of(finished, "last").scores(sample_images(finished)),
    )


def sample_images(run):
    return corpus_of(run).images.take(np.arange(5))


def test_the_command_says_what_it_wrote(finished, tmp_path):
    written = CliRunner().invoke(app, ["export", str(finished), "--safetensors", str(tmp_path / "a")])
    printed = CliRunner().invoke(app, ["export", str(finished), "--safetensors", str(tmp_path / "b"), "--json"])
    refused = CliRunner().invoke(app, ["export", str(finished), "--safetensors", str(tmp_path / "b")])

    assert written.exit_code == 0, written.stderr
    assert written.stdout.startswith("model: after round ")
    assert f"{tmp_path / 'a'}: safetensors; 7 files" in written.stdout
    assert json.loads(printed.stdout)["written"][0]["formats"] == ["safetensors"]
    assert refused.exit_code == 2
    assert "new or empty folder" in " ".join(refused.stderr.split())
