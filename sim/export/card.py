"""The model card: a page that says what a model is, what it was trained on, how good it is, and what it is not for.

Every sentence comes from the run's record, the data set's manifest or the measurements of the export.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.comparison.output import markdown_table, markdown_text
from sim.console import number
from sim.export.facts import CLOSEST, without_home
from sim.thresholds import RULES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sim.export.facts import Facts

MOST_LABELS = 200
"""Labels that the card's table shows; ``export.json`` has all."""

RANKED = ("mAP", "prevalence", "O-AP", "ranking-loss", "one-error", "LRAP", "subset-accuracy")
"""Metrics that need no fitted threshold."""

FILE_TO_INPUT = '''import numpy as np
from PIL import Image, ImageOps

def read(path):
    """uint8 [{height}, {width}, {channels}] of an image file."""
    with Image.open(path) as picture:
        picture.draft(None, ({twice_width}, {twice_height}))
        picture = ImageOps.exif_transpose(picture).convert("{colour}")
    {fit}
    return np.asarray(picture, dtype=np.uint8).reshape({height}, {width}, {channels})
'''

FITS = {
    "squash": "picture = picture.resize(({width}, {height}), Image.Resampling.BILINEAR)",
    "crop": "picture = ImageOps.fit(picture, ({width}, {height}), Image.Resampling.BILINEAR)",
    "pad": "picture = ImageOps.pad(picture, ({width}, {height}), Image.Resampling.BILINEAR)",
}

USES = {
    "onnx": """import json
from pathlib import Path
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
labels = json.loads(Path("labels.json").read_text(encoding="utf-8"))["labels"]
rows = json.loads(Path("thresholds.json").read_text(encoding="utf-8"))["labels"]
probabilities = session.run(None, {"images": np.stack([read("a.jpg")])})[0]   # float32 [n, labels]
for row in probabilities:
    print([name for name, p, t in zip(labels, row, rows) if p >= t["best-f1"]["value"]])
""",
    "torch-export": """import torch
network = torch.export.load("model.pt2").module()      # only from people you trust: torch unpickles parts of it
probabilities = network(torch.from_numpy(np.stack([read("a.jpg")])))
""",
    "safetensors": """from pathlib import Path
from sim.export.formats import load_model
predictor = load_model(Path("."))                       # needs fedmlic
probabilities = predictor.scores(np.stack([read("a.jpg")]))
""",
}


def card(facts: Facts, parity: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of ``README.md``.

    Args:
        facts: of the model.
        parity: by format, what was compared when it was written.
    """
    sections = [
        _head(facts),
        _data(facts),
        _training(facts),
        _results(facts),
        _thresholds(facts),
        _uses(facts),
        _files(facts, parity),
        _made(facts),
    ]
    return without_home("\n\n".join("\n".join(lines) for lines in sections) + "\n")


def _head(facts: Facts) -> list[str]:
    height, width, channels = facts.image_shape
    count = len(facts.label_names)
    return [
        f"# Multi-label image classifier: {count} label{'s' * (count != 1)} of {markdown_text(facts.data['name'])}",
        "",
        (
            f"A network that gives each of {count} labels a probability for an image of {height} x {width} pixels and "
            f"{channels} channel{'s' * (channels != 1)}. Labels do not exclude each other. It was trained by federated "
            "learning with FedMLIC."
        ),
        "",
        f"- **Which model**: {facts.model}.",
        (
            f"- **Licence of the data**: {markdown_text(facts.data['licence'])}. This card states no licence of the "
            "weights; whoever publishes them has to, and what the data's licence asks for has to be kept."
        ),
    ]


def _data(facts: Facts) -> list[str]:
    data = facts.data
    images = ", ".join(f"{count:,} {split}" for split, count in data["images"].items() if count)
    lines = [
        "## Data",
        "",
        f"- Data set: `{facts.settings['dataset']}`",
        f"- Images: {images}. Clients trained on `train` alone; {_val(facts)}; {_test(facts)}.",
        (
            f"- Licence, as the data set's entry states it: {markdown_text(data['licence'])}. `fedmlic list "
            f"{data['name']}` says more."
        ),
        f"- Content: `{data['content']}` (hash of pixels and labels).",
    ]
    if data["own"]:
        lines.append("- Images and labels are the user's own, not a public benchmark.")
    return lines


def _val(facts: Facts) -> str:
    """What validation images chose."""
    if not facts.thresholds.num_images:
        return "there are no validation images, so nothing was chosen on any"
    return f"`val` chose {'the round and ' * facts.val_chose_round}the thresholds"


def _test(facts: Facts) -> str:
    if facts.test is None:
        return "there are no test images, so no result was measured"
    return "`test` is what the results below are measured on"


def _training(facts: Facts) -> list[str]:
    settings, record = facts.settings, facts.record
    unannotated, untrained = record["unannotated_labels"], record["untrained_labels"]
    cohort = settings["cohort-size"] or "all"
    lines = [
        "## Federation and annotations",
        "",
        (
            f"- {settings['num-clients'] or 'As many clients as the partition finds'}"
            f"{' clients' * bool(settings['num-clients'])}, {cohort} a round, {settings['num-rounds']} rounds planned."
        ),
        f"- Images were dealt out by `{settings['partition']}`.",
        f"- What clients annotated: `{settings['regime']}`. Labels that a client did not annotate were unknown to it.",
        f"- Labels that nobody annotated: {_names(unannotated)}.",
        f"- Labels without a single positive annotation: {_names(untrained)}.",
        f"- Trained by `{settings['method']}` on `{settings['model']}`, merged by `{settings['strategy']}`"
        + (f", with `{settings['mods']}`" if settings["mods"] else "")
        + f", asked by `{settings['inference']}`.",
    ]
    return [*lines, *(f"- Warning of the run: {markdown_text(text)}" for text in record["warnings"])]


def _results(facts: Facts) -> list[str]:
    if facts.test is None:
        return ["## Results", "", "The data set has no test images: nothing was measured."]
    flat = facts.test.flat()
    heads = ["metric", "test"]
    rows = [[name, number(flat[name])] for name in RANKED]
    rows += [[name, number(value)] for name, value in flat.items() if name.endswith("/unannotated")]
    table = facts.test.per_label
    order = sorted(range(len(facts.label_names)), key=lambda column: -int(table.num_present[column]))
    shown = order if len(order) <= MOST_LABELS else order[:MOST_LABELS]
    unannotated = set(facts.record["unannotated_labels"])
    labels = [
        [
            facts.label_names[column] + " **" * (facts.label_names[column] in unannotated),
            number(table.ap[column]),
            str(table.num_present[column]),
            str(table.num_known[column]),
        ]
        for column in order
        if column in set(shown)
    ]
    notes = ["", "** annotated by nobody: in no average but `mAP/unannotated`."] if unannotated else []
    if len(shown) < len(order):
        notes += ["", f"{len(order) - len(shown)} rarer labels are in `export.json`."]
    return [
        f"## Results on {facts.test.num_images:,} test images",
        "",
        (
            f"Of the model {facts.model}. `prevalence` is the mAP of a constant score; `docs/metrics.md` of FedMLIC "
            "defines "
            "every name. One run with one seed: it says nothing about the spread over seeds."
        ),
        "",
        *markdown_table(heads, rows),
        "",
        "### Per label",
        "",
        *markdown_table(["label", "AP", "present", "known"], labels),
        *notes,
    ]


def _thresholds(facts: Facts) -> list[str]:
    found = facts.thresholds
    lines = [
        "## Thresholds",
        "",
        (
            f"A label is predicted where its probability is at or above its threshold. `thresholds.json` has three per "
            f"label: `fixed` ({found.fixed:g}), `best-f1` (largest F1) and `precision` (largest recall with a "
            "precision of "
            f"{found.precision:g} or more), with the counts that they rest on."
        ),
    ]
    if not found.num_images:
        lines.append("There are no validation images to fit them on: every label keeps the fixed one under each rule.")
    else:
        lines.append(
            f"They were fitted on {found.num_images:,} validation images and on no other. A label with fewer than "
            f"{found.min_entries} known present or {found.min_entries} known absent validation images keeps the "
            "fixed one."
        )
    for rule in ("best-f1", "precision") if found.num_images else ():
        kept = [n for n, each in zip(found.label_names, found.rules[rule], strict=True) if each.why_fixed]
        lines.append(f"Labels that keep the fixed threshold under `{rule}`: {_names(kept)}.")
    if not facts.test_at:
        return lines
    rows = [[rule, *(number(facts.test_at[rule][name]) for name in CLOSEST)] for rule in RULES]
    return [
        *lines,
        "",
        "On the test images" + ", which they were not fitted on" * bool(found.num_images) + ":",
        "",
        *markdown_table(["rule", *CLOSEST], rows),
    ]


def _uses(facts: Facts) -> list[str]:
    unannotated = facts.record["unannotated_labels"]
    lines = [
        "## Intended use",
        "",
        (
            "Research on multi-label classification in federations whose clients annotate different labels, and "
            "comparison "
            f"with other models on {markdown_text(facts.data['name'])}."
        ),
        "",
        "## What it must not be used for",
        "",
        (
            "- Decisions about people, medical findings, safety, or anything else where a wrong label does harm: "
            "nobody has "
            "examined it for that."
        ),
        (
            "- Images of another kind than those of the data set: probabilities and thresholds were measured on its "
            "images "
            "alone."
        ),
        (
            "- Labels other than the listed ones. A low probability of all labels does not say that an image shows "
            "nothing."
        ),
        "- Anything that the licence of the data rules out.",
    ]
    if unannotated:
        lines.append(f"- The labels {_names(unannotated)}: no annotation of them was ever trained on.")
    return lines


def _files(facts: Facts, parity: Mapping[str, Mapping[str, Any]]) -> list[str]:
    height, width, channels = facts.image_shape
    sizes = {"height": height, "width": width, "channels": channels, "colour": "RGB" if channels == 3 else "L"}
    fit = FITS[facts.resize].format(**sizes)
    snippet = FILE_TO_INPUT.format(**sizes, twice_height=2 * height, twice_width=2 * width, fit=fit)
    lines = [
        "## How to use it",
        "",
        (
            f"Input `images`: uint8 `[n, {height}, {width}, {channels}]`, {'RGB' if channels == 3 else 'grey'}, any "
            "n. Output "
            f"`probabilities`: float32 `[n, {len(facts.label_names)}]`, in the order of `labels.json`. Scaling of "
            "bytes and "
            "everything behind it is inside the model. A file becomes that input like this (16-bit and transparent "
            "images "
            "need more: `fedmlic.images.decode` does what training did with them):"
        ),
        "",
        *_code(snippet),
    ]
    for name, found in parity.items():
        lines += [
            "",
            f"### {name}",
            "",
            (
                f"Compared with the run's own model on {found['num_images']} {found['split']} images before it was "
                "written: "
                f"probabilities differ by {found['largest']:.2g} at most ({found['tolerance']:g} is allowed)."
            ),
            "",
            *_code(USES[name]),
        ]
    return lines


def _made(facts: Facts) -> list[str]:
    def versions(about: Mapping[str, Any]) -> str:
        packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
        return f"Python {about['python']}, {packages}; {about['platform']}"

    return [
        "## How it was made",
        "",
        *_code(facts.command + "\n", "sh"),
        "",
        f"- Trained with {versions(facts.run_environment)}.",
        f"- Exported with {versions(facts.environment)}.",
        f"- Identity of the experiment: `{facts.about['identity']}`, seed {facts.settings['seed']}.",
    ]


def _code(text: str, language: str = "python") -> list[str]:
    return [f"```{language}", *text.rstrip("\n").splitlines(), "```"]


def _names(names: Sequence[str]) -> str:
    if not names:
        return "none"
    return ", ".join(map(markdown_text, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
