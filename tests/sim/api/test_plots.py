"""Pictures show the numbers of the tables, as figures of their own."""

import sys
import warnings

import matplotlib as mpl
import numpy as np
import pytest

from fedmlic.errors import InputError
from fedmlic.experiment import split_settings
from fedmlic.record import create, write_json
from sim import api
from sim.api.results import OtherDataWarning

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def runs(settings, tmp_path_factory):
    """Two methods, two seeds."""
    place = tmp_path_factory.mktemp("runs")
    return [
        api.run(settings(method=method, seed=seed, num_rounds=2), out=place / f"{method[:3]}{seed}", progress=False)
        for method in ("bce()", "asl()")
        for seed in (0, 1)
    ]


def test_curves_are_means_over_seeds_with_bands_of_one_standard_deviation(runs):
    figure = api.plot_curves(runs)
    axis = figure.axes[0]
    values = np.array([run.curve().to_numpy() for run in runs])

    assert [line.get_label() for line in axis.lines] == ["bce() (2 runs)", "asl() (2 runs)"]
    for place, line in enumerate(axis.lines):
        pair = values[2 * place : 2 * place + 2]
        np.testing.assert_allclose(line.get_ydata(), pair.mean(axis=0))
        corners = axis.collections[place].get_paths()[0].vertices
        at_one = corners[corners[:, 0] == 1][:, 1]
        spread = pair[:, 0].std(ddof=1)
        assert at_one.max() == pytest.approx(pair[:, 0].mean() + spread)
        assert at_one.min() == pytest.approx(pair[:, 0].mean() - spread)
    assert axis.get_ylabel() == "server/mAP"


def test_one_run_is_a_line_without_a_band(runs):
    axis = api.plot_curves(runs[0], metric="loss").axes[0]

    assert len(axis.lines) == 1
    assert not axis.collections
    np.testing.assert_allclose(axis.lines[0].get_ydata(), runs[0].rounds["loss"])
    with pytest.raises(InputError, match="'losses', got none"):
        api.plot_curves(runs, metric="losses")


def test_runs_of_other_images_are_drawn_with_a_warning(tmp_path):
    """Two seeds of one row, between which the labels in the folder were changed."""
    columns = {"label": ["one"], "ap": [0.5], "num_present": [3], "num_known": [9]}
    for seed, corpus in enumerate("ab"):
        folder = create(tmp_path / str(seed), *split_settings({"seed": seed}))
        folder.event("labels", {"round": 1, "split": "test", **columns})
        folder.event("round", {"round": 1, "server/mAP": 0.5})
        write_json(folder.path / "data.json", {"corpus": corpus})
    paths = [tmp_path / "0", tmp_path / "1"]

    for plot in (api.plot_curves, api.plot_labels):
        with pytest.warns(OtherDataWarning, match=f"{paths[0]} and {paths[1]}, whose settings name the same") as said:
            plot(paths)
        assert said[0].filename == __file__
        write_json(paths[1] / "data.json", {"corpus": "a"})
        with warnings.catch_warnings():
            warnings.simplefilter("error", OtherDataWarning)
            plot(paths)
        write_json(paths[1] / "data.json", {"corpus": "b"})


def test_labels_are_in_the_order_of_their_prevalence(runs):
    axis = api.plot_labels(runs).axes[0]
    test = runs[0].labels.query("split == 'test' and round == 2").set_index("label")
    chance = (test["num_present"] / test["num_known"]).sort_values()
    names = [text.get_text() for text in axis.get_yticklabels()]
    tables = [run.labels.query("split == 'test' and round == 2").set_index("label") for run in runs[:2]]
    ap = sum(table["ap"][names].astype(float) for table in tables) / 2

    assert sorted(names) == sorted(chance.index)
    np.testing.assert_allclose(axis.lines[0].get_xdata(), chance[names])
    assert (np.diff(axis.lines[0].get_xdata()) >= 0).all()
    np.testing.assert_allclose(axis.containers[0][0].get_xdata().astype(float), ap)


def test_seeds_are_joined_and_the_difference_is_that_of_the_comparison(runs):
    compared = api.compare(runs, by="method")
    axis = api.plot_seeds(compared).axes[0]

    assert [text.get_text() for text in axis.get_xticklabels()] == ["bce", "asl"]
    joined = [line.get_ydata() for line in axis.lines[:2]]
    np.testing.assert_allclose(joined, compared.by_seed)
    assert f"{compared.pairs['mean'][0]:+.3f}" in axis.get_title()
    assert f"p = {compared.pairs['p'][0]:.2g}" in axis.get_title()


def test_who_sees_what_is_the_picture_of_describe(settings):
    figure = api.plot_clients(settings())
    shares = figure.axes[0].images[0].get_array()

    assert shares.shape == (6, 10)
    assert ((shares == 0) | (shares == 100)).all()
    assert (shares == 100).sum(axis=1).tolist() == [4] * 6


def test_notebooks_show_figures_and_pyplot_knows_of_none(runs):
    assert api.plot_curves(runs)._repr_png_()[:4] == PNG
    if "matplotlib.pyplot" in sys.modules:  # of another test
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []
    assert mpl.rcParams["text.parse_math"]  # as it was
