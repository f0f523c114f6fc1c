"""Every recipe of a method is played to its end, shrunk: what parses may still fail in its third round."""

import math
from pathlib import Path

import pytest

from fedmlic import spec
from fedmlic.experiment import split_settings
from fedmlic.record import open_run
from sim.commands.settings import read_settings
from sim.run import run

pytestmark = pytest.mark.slow

RECIPES = sorted(
    file.stem
    for file in (Path(__file__).parents[2] / "sim" / "recipes" / "methods").glob("*.toml")
    if not file.stem.endswith("_paper")
)
FEW = {"num_images": 160, "num_train": 120, "num_val": 24, "num_test": 48, "search_images": 8}
"""How many images there are of a kind, where a recipe says a number."""
STRETCHES = (
    "warm_up",
    "align_rounds",
    "encoder_rounds",
    "search_rounds",
    "preprocessing",
    "finetuning",
    "rounds",
    "ramp",
)
"""Arguments that say for how many rounds something lasts: one is enough to come to its border."""


def shrunk(text, key):
    """An entry with few images, and one round in place of many."""
    found = spec.parse(text, key)
    small = {name: FEW[name] for name in FEW if name in found.arguments}
    small |= {name: 1 for name in STRETCHES if name in found.arguments}
    return str(found._replace(arguments={**found.arguments, **small}))


def test_there_are_recipes():
    assert {"fedlgt", "label_bias", "hapi", "ridge"} < set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_ends_with_finite_numbers(name, tmp_path):
    recipe = read_settings([f"methods/{name}"])
    small = {key: shrunk(recipe[key], key) for key in ("dataset", "method", "strategy")}
    clients = {} if recipe["partition"] == "natural()" else {"num-clients": 6}
    sizes = {"cohort-size": 0, "num-rounds": min(recipe["num-rounds"], 4), "local-epochs": 1, "evaluate-every": 2}
    least = {"client-min-entries": 1, "statistics-min-clients": 2, "statistics-min-images": 2}
    here = {"engine": "inprocess", "device": "cpu"}

    result = run(*split_settings({**recipe, **small, **clients, **sizes, **least, **here}), tmp_path / "run")

    turns = [event for event in open_run(tmp_path / "run").events() if event["event"] == "client"]
    assert turns
    assert not [turn["error"] for turn in turns if turn.get("error")]
    metrics = {key: value for key, value in result["metrics"].items() if isinstance(value, float)}
    assert "server/mAP" in metrics  # of clients with so few held-out images there may be none
    assert {key: value for key, value in metrics.items() if not math.isfinite(value)} == {}
