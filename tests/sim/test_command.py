"""The command: settings, errors in one line with exit code 2, JSON on stdout, nothing half-written."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment, split_settings
from fedmlic.labels import known
from fedmlic.record import RunFolder
from sim.command import _standing, app
from sim.commands.settings import parameter_types, read_options, read_settings
from sim.run import describe_federation
from strategies.server.check import check_experiment

FAULTY = """
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.training import classifier


def faulty():
    base = classifier(mean_binary_cross_entropy)

    def train(resident, shard, local):
        raise ValueError("[/red] no [bold] luck")

    return base._replace(train=train)
"""


@pytest.fixture
def fedmlic(tmp_path, monkeypatch):
    """A function: run the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def pairs(settings):
    """A function: the tiny experiment as ``key=value`` arguments, some of them changed."""
    return lambda **changes: [f"{key}={value}" for key, value in settings(**changes).items()]


def one_line(result):
    """The message of a result that must be one clear line and nothing else."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# Settings


def test_recipe_then_pairs_with_dashes_or_underscores(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('dataset = "multidigits(num_train=9)"\nnum-rounds = 7\nbatch_size = 5\nlearning-rate = 0.5\n')

    found = read_settings([str(recipe), "num_rounds=8", "method=bce(pool='max')", "device=cpu", "seed = 3"])

    assert found == {
        "dataset": "multidigits(num_train=9)",
        "num-rounds": 8,
        "batch-size": 5,
        "learning-rate": 0.5,
        "method": "bce(pool='max')",
        "device": "cpu",
        "seed": 3,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=-1.5e-3", -0.0015),
        ("a=true", True),
        ("a='x'", "x"),
        ("a=x=y", "x=y"),
        ("a=", ""),
        ("a=labelwise(shared='images')", "labelwise(shared='images')"),
        ("a=cat, dog", "cat, dog"),
    ],
)
def test_values_are_toml_where_that_works_and_text_elsewhere(text, value):
    assert read_settings([text]) == {"a": value}


def test_options_win_over_pairs_and_pairs_over_the_recipe(fedmlic, pairs, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('num-rounds = 3\nengine = "ray"\nseed = 4\nout = "from-recipe"\n')
    arguments = [pair for pair in pairs() if not pair.startswith(("num-rounds", "engine"))]

    result = fedmlic(
        "run", recipe, *arguments, "seed=5", "engine=ray", "--engine", "inprocess", "--out", "out", "--json"
    )

    assert result.exit_code == 0, result.stderr
    found = json.loads((tmp_path / "out" / "experiment.json").read_text())
    assert (found["experiment"]["num_rounds"], found["experiment"]["seed"]) == (3, 5)
    assert found["runtime"]["engine"] == "inprocess"
    assert not (tmp_path / "from-recipe").exists()


def test_references_that_cannot_be_run_are_refused_before_the_run(fedmlic, pairs, tmp_path):
    """In 4 rounds of 4 of 6 clients each has 3 turns on average, and so many rounds alone; the method needs 4."""
    changed = pairs(method="probe_then_tune(probe_rounds=3)")

    result = fedmlic("run", *changed, "--references", "--out", "out", "--json")

    assert result.exit_code == 2
    assert "Expected reference local-only" in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


def test_what_a_run_came_to_is_said_where_its_references_fail(fedmlic, pairs, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise InputError("no luck")

    monkeypatch.setattr("sim.sweep.start.sweep", failing)
    result = fedmlic("run", *pairs(num_rounds=1), "--references", "--out", "out", "--json")

    assert result.exit_code == 1
    assert json.loads(result.stdout)["run"] == str(tmp_path / "out")
    assert "The run is complete, but its references are not: no luck" in " ".join(result.stderr.split())


def test_a_run_is_complete_where_its_references_are_interrupted(fedmlic, pairs, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sim.sweep.start.sweep", interrupted)
    result = fedmlic("run", *pairs(num_rounds=1), "--references", "--out", "out")

    assert result.exit_code == 130
    said = "".join(result.stderr.split())
    assert f"Theruniscomplete:{tmp_path / 'out'}." in said
    assert "Nothingwaswritten" not in said


def test_the_shipped_recipes_are_valid():
    folder = Path(__file__).parents[2] / "sim" / "recipes"
    for file in folder.rglob("*.toml"):
        found = read_settings([file.relative_to(folder).with_suffix("").as_posix()])
        assert found, file
        assert {key.replace("-", "_") for key in found} <= set(Experiment.model_fields) | {"engine", "workers"}
        # Also those that want the user's files, of which this reads none.
        check_experiment(*split_settings(found))
    assert read_settings(["methods/label_bias", "seed=3"])["regime"] == "single_positive(bias='size')"


def alternatives(name):
    """Settings of every run that the comments of a recipe propose."""
    file = Path(__file__).parents[2] / "sim" / "recipes" / "methods" / f"{name}.toml"
    lines = re.sub(r"\n#       ", " ", file.read_text(encoding="utf-8"))
    found = [shlex.split(line) for line in re.findall(rf"^#   fedmlic run (methods/{name} .*)$", lines, re.MULTILINE)]
    return [read_settings([each[0], *(part for part in each[1:] if re.match("[a-z-]+=", part))]) for each in found]


@pytest.mark.parametrize(("name", "count"), [("diff_feat", 2), ("hapi", 6), ("partial_bce", 3), ("pml_cdcr", 3)])
def test_runs_that_a_recipe_proposes_would_start(name, count):
    found = alternatives(name)

    assert len(found) == count
    for settings in found:
        check_experiment(*split_settings(settings))


def test_completeness_counts_where_the_recipe_proposes_to_weigh_by_it():
    (settings,) = [each for each in alternatives("partial_bce") if "completeness" in each.get("strategy", "")]

    small = {"dataset": "scenes(preset='tiny', num_images=200, num_test=20)"}
    federation = describe_federation(*split_settings({**settings, **small}))
    shares = [known(federation.shard(client).labels).mean() for client in federation.clients]

    assert max(shares) > 2 * min(shares)


VALIDATION = {
    # FLAIR's validation users are others, and HAPI has no splits.
    **dict.fromkeys(("fedlgt_paper", "fedharmony_paper", "hapi_paper"), None),
    # Shares of the training images that the sources validate on, too.
    "label_bias_paper": "val_fraction=0.2)",
    "fedlsm_paper": "val_fraction=0.125)",
    "surgical_paper": "val_fraction=0.1)",
}
LIMITS = {"fedlgt_paper": 10, "add_gcn_paper": 10, "db_paper": 35}
"""Limits of the gradient that the sources have."""


def test_recipes_of_papers_train_on_all_training_images():
    """But for the ones whose source validates on some of them; and a limit of the gradient is the source's."""
    folder = Path(__file__).parents[2] / "sim" / "recipes" / "methods"
    names = {file.stem for file in folder.glob("*_paper.toml")}
    assert len(names) > 22
    assert names >= {*VALIDATION, *LIMITS}
    for name in names - {"hapi_paper"}:
        found = read_settings([f"methods/{name}"])
        assert found["holdout-fraction"] == 0, name
        assert found["clip-norm"] == LIMITS.get(name, 0), name
        share = VALIDATION.get(name, "val_fraction=0)")
        assert ("val_fraction" not in found["dataset"]) if share is None else (share in found["dataset"]), name


def test_recipes_of_papers_name_the_weights_that_their_sources_begin_with():
    """So that a missing file is an error: a network from scratch would train without a word."""
    from_scratch = {"fednoro_paper"}  # as its source
    folder = Path(__file__).parents[2] / "sim" / "recipes" / "methods"
    for name in {file.stem for file in folder.glob("*_paper.toml")} - from_scratch:
        given = spec.parse(read_settings([f"methods/{name}"])["model"], "model").arguments
        assert given.get("weights", given.get("path", "none")) != "none", name
    own = spec.parse(read_settings(["methods/probmcl_paper"])["model"], "model").arguments
    assert own["norm"] == "pooled"  # with weights it would be frozen by itself


def test_every_recipe_of_a_paper_says_that_it_was_not_run_and_stands_on_its_page():
    root = Path(__file__).parents[2]
    pages = "".join(page.read_text(encoding="utf-8") for page in (root / "docs").rglob("*.md"))
    for file in (root / "sim" / "recipes" / "methods").glob("*_paper.toml"):
        head = re.match(r"(#.*\n)+", file.read_text(encoding="utf-8")).group().replace("\n# ", " ")
        assert re.search(r"not\s+run\s+here", head, re.IGNORECASE), file.name
        assert f"methods/{file.stem}" in pages, f"Name {file.stem} on its page in docs/."
        for page in re.findall(r"docs/[\w/]+\.md", head):
            assert (root / page).is_file(), (file.name, page)


def test_a_recipe_in_a_folder_that_does_not_exist_names_the_nearest(fedmlic):
    assert "Did you mean 'methods/label_bias'" in one_line(fedmlic("run", "methods/label_bais"))


# Bad input

BAD = {
    # unknown keys name the nearest
    ("num-round=3",): "Did you mean 'num-rounds'",
    ("metod=bce()",): "Did you mean 'method'",
    ("xyzzy=1",): "Known: allow-statistics, audit-log, augmentation",
    # unknown names and arguments
    ("method=fedlgtt()",): "Did you mean 'fedlgt'",
    ("partition=dirichlett(alpha=1)",): "Did you mean 'dirichlet'",
    ("regime=[1]",): "regime",
    ("strategy=fedavg(weight='images')",): "Did you mean 'weights'",
    ("strategy=fedavg(weights='pictures')",): "'images'",
    ("dataset=multidigits(num_train=0)",): "num_train",
    ("dataset=multidigits(600)",): "by name",
    ("dataset=multidigits(num_train=__import__('os'))",): "is not a number, text, list or boolean",
    ("dataset=multidigits(",): "name(key=value, ...)",
    ("method=",): "name(key=value, ...)",
    ("method=no_such_module.thing()",): "no module 'no_such_module'",
    ("method=fedmlic.methods.bce.bse()",): "Did you mean 'bce'",
    ("model=small_cnn(width=abc)",): "quote text",
    # values out of range or of another type
    ("num-rounds=-1",): "num-rounds: should be greater than or equal to 0, got -1",
    ("num-rounds=2.5",): "num-rounds",
    ("num-rounds=many",): "num-rounds",
    ("learning-rate=-1",): "learning-rate",
    ("learning-rate=inf",): "learning-rate",
    ("learning-rate=nan",): "learning-rate",
    ("optimizer=sgdd",): "optimizer",
    ("cohort-size=7",): "at most num-clients (6), got 7",
    ("seed=-1",): "seed",
    ("holdout-fraction=1",): "holdout-fraction",
    ("engine=rey",): "engine",
    ("workers=-1",): "workers",
    ("device=gpu",): "device",
    # not settings at all
    ("seed=1", "resnet"): "settings as key=value, got 'resnet'",
    # impossible partitions and regimes
    ("partition=iid()", "num-clients=500", "cohort-size=4"): "500",
    ("partition=dirichlet(alpha=0.1, min_images=100)",): "min_images",
    ("partition=natural()", "num-clients=0", "cohort-size=50"): "cohort-size",
    ("regime=label_subset(labels_per_client=11)",): "labels_per_client",
    ("label-names=cat,dog",): "label-names",
}


@pytest.mark.parametrize("changes", BAD, ids=" ".join)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(fedmlic, pairs, tmp_path, changes):
    keys = {change.partition("=")[0] for change in changes}
    arguments = [pair for pair in pairs() if pair.partition("=")[0] not in keys]

    line = one_line(fedmlic("run", *arguments, *changes, "--out", tmp_path / "out", "--json"))

    assert BAD[changes] in line
    assert not list(tmp_path.iterdir())


def test_recipes_that_do_not_exist_or_are_no_toml(fedmlic, tmp_path):
    (tmp_path / "broken.toml").write_text("a = = 1")
    (tmp_path / "latin.toml").write_bytes(b'dataset = "caf\xe9"')

    assert "Expected a recipe or a TOML file, got 'absent.toml'" in one_line(fedmlic("run", "absent.toml"))
    assert "Expected a recipe or a TOML file, got 'dirichlet(alpha=1)'" in one_line(
        fedmlic("run", "dirichlet(alpha=1)")
    )
    assert "to be TOML" in one_line(fedmlic("run", "broken.toml"))
    assert "to be TOML" in one_line(fedmlic("run", "latin.toml"))


def test_a_folder_with_something_in_it_is_left_alone(fedmlic, pairs, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")

    assert "new or empty" in one_line(fedmlic("run", *pairs(), "--out", "out"))
    assert "new or empty" in one_line(fedmlic("run", *pairs(), "--out", "out/notes.txt"))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_plug_in_that_cannot_be_imported_blames_what_is_missing(fedmlic, pairs, plug):
    plug("mine", "import fe\n\ndef mine():\n    pass\n")

    with pytest.raises(ModuleNotFoundError, match="No module named 'fe'"):
        fedmlic("run", *pairs(method="mine.mine()"))


def test_a_corrupt_corpus_is_named(fedmlic, pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMLIC_HOME", str(tmp_path / "home"))
    assert fedmlic("describe", *pairs(), "--json").exit_code == 0
    next((tmp_path / "home").rglob("corpora/*/*/manifest.json")).write_text("{")

    line = one_line(fedmlic("run", *pairs(), "--out", "out"))

    assert "manifest" in line or "corpora" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["resume", "show", "predict", "export"])
def test_what_is_no_run_is_refused(fedmlic, tmp_path, name):
    more = {"predict": [tmp_path / "image.png"], "export": ["--onnx", tmp_path / "out"]}.get(name, [])

    assert "the folder of a run" in one_line(fedmlic(name, tmp_path / "absent", *more))
    assert "the folder of a run" in one_line(fedmlic(name, tmp_path, *more))


def test_a_failed_run_exits_with_1_and_says_why_without_markup(fedmlic, pairs, plug):
    plug("faulty", FAULTY)

    result = fedmlic("run", *pairs(method="faulty.faulty()"), "--out", "out", "--json")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("RunFailedError: Expected at least 2 of 4 clients to succeed in round 1, got 0.")
    assert "[/red] no [bold] luck" in last
    shown = fedmlic("show", "out")
    assert "[/red] no [bold] luck" in " ".join(shown.stdout.split())
    assert json.loads(fedmlic("show", "out", "--json").stdout)["status"] == "failed"


# What comes out


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "scene [1].png"
    Image.new("RGB", (40, 30), (200, 10, 10)).save(path)
    return path


def test_each_command_prints_one_json_object_on_stdout(fedmlic, pairs, finished, picture):
    results = {
        "run": fedmlic("run", *pairs(), "--out", "out", "--json"),
        "resume": fedmlic("resume", "out", "--json"),
        "describe": fedmlic("describe", *pairs(), "--json"),
        "list": fedmlic("list", "--json"),
        "list method": fedmlic("list", "methods", "--json"),
        "show": fedmlic("show", finished, "--json"),
        "predict": fedmlic("predict", finished, picture, "--json"),
    }

    for name, result in results.items():
        assert result.exit_code == 0, (name, result.stderr)
        assert len(result.stdout.splitlines()) == 1, name
        assert isinstance(json.loads(result.stdout), dict), name
    run = json.loads(results["run"].stdout)
    assert run == json.loads(results["resume"].stdout)
    assert {"run", "rounds", "metrics", "weights_sha256", "seconds"} <= set(run)
    assert Path(run["run"]).is_absolute()
    assert 0 <= run["metrics"]["server/mAP"] <= 1
    assert set(json.loads(results["list method"].stdout)) == {"schema", "method"}


def test_without_a_terminal_progress_is_plain_lines_on_stderr(fedmlic, pairs, tmp_path):
    result = fedmlic("run", *pairs(), "--out", "out")

    assert "\x1b" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("round ")]
    assert [line.split()[1] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
    assert all("loss" in line and "mAP" in line and "ETA" in line for line in lines)
    assert "mAP" in result.stdout
    assert f"run folder: {tmp_path / 'out'}" in result.stdout
    assert not any("round 1/" in line for line in result.stdout.splitlines())


def test_tables_for_people(fedmlic, pairs, finished, picture):
    shown = fedmlic("show", finished)
    assert shown.exit_code == 0
    assert "best on validation" in shown.stdout
    assert "labels on test" in shown.stdout
    assert "three" in shown.stdout

    listed = fedmlic("list")
    for name in ("multidigits", "dirichlet", "single_positive", "fedlgt", "labelwise", "learning-rate"):
        assert name in listed.stdout

    predicted = fedmlic("predict", finished, picture)
    assert "scene [1].png" in predicted.stdout
    assert len([line for line in predicted.stdout.splitlines() if line.startswith("  ")]) == 10

    assert fedmlic("describe", *pairs()).exit_code == 0


def test_an_unknown_catalogue_names_the_nearest(fedmlic):
    assert "Did you mean 'method'" in one_line(fedmlic("list", "metod"))


def test_nothing_but_errors_touches_the_working_folder(fedmlic, tmp_path):
    fedmlic("list")

    assert not list(tmp_path.iterdir())


def test_the_default_folder_is_named_by_date(fedmlic, pairs, tmp_path):
    result = fedmlic("run", *pairs(num_rounds=1), "--json")

    assert Path(json.loads(result.stdout)["run"]).parent == tmp_path / "runs"


# The installed command


def test_the_command_as_it_is_installed(settings, tmp_path):
    """A plug-in beside you is found; stdout is JSON alone, also with warnings around."""
    (tmp_path / "beside.py").write_text(
        "from fedmlic.methods.bce import bce\n\n\ndef beside():\n    print('hello')\n    return bce()\n"
    )
    changes = settings(method="beside.beside()", num_rounds=1)
    command = [Path(sys.executable).parent / "fedmlic", "run", *(f"{k}={v}" for k, v in changes.items())]

    result = subprocess.run(
        [*command, "--out", "out", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ
    )

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["rounds"] == 1
    bad = subprocess.run([*command, "--out", "out"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "Traceback" not in bad.stderr


def test_input_errors_are_value_errors():
    assert issubclass(InputError, ValueError)


# Text stays text


@pytest.mark.parametrize("value", ["2026-11-28", "2026", "true", "1e3", "07:32:00", "1.50"])
def test_settings_that_are_text_stay_text(value):
    assert read_settings([f"out={value}", f"label_names={value}", "seed=3"]) == {
        "out": value,
        "label-names": value,
        "seed": 3,
    }


def test_text_of_a_recipe_is_text_without_quotes_too(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("out = 2026-11-28\nhome = 2026\nlabel-names = true\nseed = 5\nchannels-last = true\n")

    assert read_settings([str(recipe)]) == {
        "out": "2026-11-28",
        "home": "2026",
        "label-names": "true",
        "seed": 5,
        "channels-last": True,
    }


def test_parameters_of_a_data_set_are_read_by_their_types():
    found = read_options(["csv=123", "image-size=64", "separator=7", "blank=absent"], parameter_types("folder"))

    assert found == {"csv": "123", "image-size": 64, "separator": "7", "blank": "absent"}
    assert parameter_types("no such data set") == {}


# One entry, the version, what is kept


def test_one_entry_is_shown_with_its_arguments_and_page(fedmlic):
    shown = fedmlic("list", "fedlgt")
    found = json.loads(fedmlic("list", "fedlgt", "--json").stdout)["method"][0]

    assert shown.exit_code == 0
    for words in ("known_fraction_max", "0.75", "largest share", "docs/methods/fedlgt.md"):
        assert words in shown.stdout
    assert found["arguments"]["layers"] == "3"
    assert found["meanings"]["layers"] == "encoder layers."
    assert "local learning rate" in fedmlic("list", "learning-rate").stdout
    assert "Did you mean 'fedlgt'" in one_line(fedmlic("list", "fedlgtt"))


def test_methods_are_listed_with_what_they_say_of_themselves(fedmlic):
    found = {
        entry["name"]: entry["traits"] for entry in json.loads(fedmlic("list", "method", "--json").stdout)["method"]
    }

    assert found["bce"]["guesses"] == ""
    assert found["assume_negative"]["guesses"] == "absent"
    assert found["role"]["memory"] is True
    assert found["bce"]["memory"] is False
    needing = {name for name, traits in found.items() if traits["needs-absences"]}
    assert needing == {"fedharmony", "fedlsm", "fedmlp"}  # fedalign only with pseudo=True
    reading = {name for name, traits in found.items() if traits["text"]}
    able = {name for name, traits in found.items() if traits["text-option"]}
    assert reading == {"dualcoop", "fedtpg", "hp_dval", "promptfl"}
    assert able == reading | {"fedalign", "fedlgt", "hsvlt"}
    assert {name for name, traits in found.items() if traits["pretrained"]} == reading  # whose text half is a CLIP's
    asking = [found[name]["counts"] for name in ("fedharmony", "fedmlp", "fedcorr", "ridge", "bce", "fedalign")]
    assert asking == [True, True, True, True, False, False]
    assert all(set(traits) == set(found["bce"]) for traits in found.values())
    assert "dropout" in found["fedlgt"]["one-by-one"]
    assert found["role"]["one-by-one"] == ""
    assert "keeps state on the client" in " ".join(fedmlic("list", "role").stdout.split())
    assert "can read label names as text (text=...)" in " ".join(fedmlic("list", "hsvlt").stdout.split())
    assert "; reads label names as text" in " ".join(fedmlic("list", "promptfl").stdout.split())
    assert "(allow-statistics)" in " ".join(fedmlic("list", "fedcorr").stdout.split())
    assert json.loads(fedmlic("list", "seed", "--json").stdout)
    assert json.loads(fedmlic("list", "--json").stdout)["method"][0]["traits"] == {}


def test_the_version_is_shown(fedmlic):
    assert fedmlic("--version").stdout.startswith("fedmlic ")


HELP = {
    "run": "RECIPE is the name of",
    "resume": "RUN is the run's folder",
    "describe": "RECIPE and KEY=VALUE are",
    "list": "NAME is a catalogue",
    "show": "RUN is the run's folder",
    "predict": "IMAGE an image file",
    "export": "Formats may be given together",
    "data import": "NAME is a data set",
    "data check": "NAME is a data set",
    "data describe": "NAME a data set",
}


@pytest.mark.parametrize("command", HELP)
def test_help_says_what_the_arguments_are(fedmlic, command):
    result = fedmlic(*command.split(), "--help")

    assert result.exit_code == 0
    assert HELP[command] in " ".join(result.stdout.split())
    assert command != "describe" or "runs/DATE-TIME" not in result.stdout


def test_an_interrupted_run_says_what_is_kept(finished, tmp_path):
    assert "no run folder" in _standing(None)
    assert "is complete" in _standing(RunFolder(finished))
    shutil.copytree(finished, tmp_path / "a run")
    (tmp_path / "a run" / "result.json").unlink()
    said = _standing(RunFolder(tmp_path / "a run"))
    assert said.startswith("The last checkpoint is kept: round 4 of 4, in ")
    assert said.endswith(f"fedmlic resume '{tmp_path / 'a run'}'")
    shutil.rmtree(tmp_path / "a run" / "checkpoints")
    assert "no checkpoint yet" in _standing(RunFolder(tmp_path / "a run"))


def test_a_failed_check_exits_with_1_and_says_nothing_else(fedmlic, tmp_path):
    (tmp_path / "broken [red].png").write_bytes(b"nothing")
    (tmp_path / "labels.csv").write_text("path,labels\nbroken [red].png,[/INST]\n")

    result = fedmlic("data", "check", "folder", "--root", tmp_path)

    assert result.exit_code == 1
    assert "Exit" not in result.output
    assert f"{tmp_path / 'broken [red].png'}: " in result.stdout


# Names that look like markup


def test_names_with_markup_pass_through_every_command(fedmlic, pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    names = ["dog [red]", "[/INST]", "a$b_{$", ":smile:"]
    rows = ["path,labels,split,owner"]
    for number in range(16):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"g{number}.png")
        labels = ";".join(name for place, name in enumerate(names) if number >> place & 1)
        rows.append(
            f"g{number}.png,{labels},{('train', 'train', 'val', 'test')[number // 2 % 4]},owner [/{number % 3}]"
        )
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    dataset = f"folder(root='{tmp_path}', image_size=24, blank='absent')"
    arguments = pairs(dataset=dataset, regime="complete()", num_clients=2, cohort_size=0, num_rounds=1)

    results = {
        "run": fedmlic("run", *arguments, "--out", "run [/]"),
        "show": fedmlic("show", "run [/]"),
        "predict": fedmlic("predict", "run [/]", "g1.png"),
        "describe": fedmlic("describe", *arguments, "--out", "pictures"),
        "data describe": fedmlic("data", "describe", dataset, "--out", "more"),
    }

    for name, result in results.items():
        assert result.exit_code == 0, (name, result.output)
        for label in names if name != "run" else ["run [/]"]:
            assert label in result.stdout, name
