import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tiny import BACKENDS, contrasts, demonstrations, fitted

import sea_lens as sl
from sea_lens.cli.files import markdown_table

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def results(load_tiny):
    """One result of every kind."""
    model = load_tiny("llama", BACKENDS[0])
    edit, items = fitted(model), contrasts()
    heads = fitted(model, site="z")
    control = [sl.randomised(edit, 0), sl.randomised(edit, 1)]
    return {
        "layers": sl.layer_contributions(model, edit, items, "leave_one_out", layers=[0, 2], control=control),
        "positions": sl.position_contributions(model, edit, items),
        "directions": sl.direction_contributions(model, edit, items, control=control),
        "directions of heads": sl.direction_contributions(model, heads, items, describe=2),
        "direct": sl.head_contributions(model, edit, items, layers=[0, 2], control=control),
        "necessity": sl.head_contributions(model, edit, items, "necessity"),
    }


def test_results_have_labels_tables_intervals_and_figures(results):
    for name, result in results.items():
        labels, values = list(result.labels), result.values.flatten()
        assert len(labels) == len(set(labels)) == len(values), name
        ranked = result.top(len(labels))
        assert [abs(value) for _, value in ranked] == sorted(values.abs().tolist(), reverse=True)
        assert all(values[labels.index(label)] == value for label, value in ranked)
        assert len(result.top(2)) == 2
        errors = result.item_values.std(0) / math.sqrt(len(contrasts()))
        torch.testing.assert_close(result.standard_errors, errors)
        frame = result.to_frame()
        parts = frame if "component" not in frame else frame[frame["component"] == "head"]
        assert parts["value"].tolist() == values.tolist()
        # Parts that nothing reaches are zero on every contrast, and have no interval.
        assert not ((parts["low"] > parts["value"] + 1e-12) | (parts["value"] > parts["high"] + 1e-12)).any()
        assert parts["low"].isna().tolist() == (result.item_values.flatten(1).std(0) == 0).tolist()
        interval = result.interval(labels[-1])
        assert (interval.low, interval.high) == pytest.approx(
            (parts["low"].iloc[-1], parts["high"].iloc[-1]), nan_ok=True
        )
        assert math.isclose(frame["value"].sum(), result.total, abs_tol=1e-9)
        assert ("control_low" in frame) == (result.control_values is not None)
        if result.beyond_controls is None:
            assert result.control_values is None
        else:
            outside = (parts["value"] < parts["control_low"]) | (parts["value"] > parts["control_high"])
            assert result.beyond_controls.flatten().tolist() == outside.tolist()
        assert result.method in str(result)
        axes = result.plot()
        assert axes.get_title()
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        plt.close(axes.get_figure())


def test_a_printed_result_and_its_figure_call_parts_by_name(results):
    named = {name: found.named(found.labels[0]) for name, found in results.items()}
    first = results["positions"].positions[0]
    assert named == {
        "layers": "layer 0",
        "positions": f"layer 0 at {first}",
        "directions": "layer 0 raised[0]",
        "directions of heads": "layer 0 head 0 raised[0]",
        "direct": "0.0",
        "necessity": "0.0",
    }
    assert "; layer " in str(results["layers"])
    axes = results["directions"].plot()
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    (label, _), *_ = results["directions"].top(1)
    assert any(text.startswith(f"1: {results['directions'].named(label)}: ") for text in told)
    plt.close(axes.get_figure())


def test_labels_name_the_right_values(results):
    found = results
    assert found["layers"].layers == (0, 2)
    assert found["layers"].to_frame()["layer"].tolist() == [0, 2]
    (layer, head), value = found["necessity"].top(1)[0]
    assert value == found["necessity"].values[layer, head]
    (layer, position), value = found["positions"].top(1)[0]
    positions = found["positions"].positions
    assert value == found["positions"].values[layer, positions.index(position)]
    assert set(found["direct"].to_frame()["component"]) == {"head", "embedding", "attention_bias", "mlp", "edit"}
    table = found["directions of heads"].to_frame()
    assert not table["head"].isna().any()
    assert found["directions"].to_frame()["head"].isna().all()


def test_a_figure_is_drawn_on_given_axes(model):
    figure, ax = plt.subplots()
    result = sl.layer_contributions(model, fitted(model), contrasts(), "only_one")
    assert result.plot(ax) is ax
    plt.close(figure)


def test_a_control_of_another_shape_is_refused(model):
    other = fitted(model, rank=(2, 2))
    with pytest.raises(sl.InputError, match="control edit has other ranks than the edit"):
        sl.direction_contributions(model, fitted(model), contrasts(), control=[other])
    elsewhere = fitted(model, site="attn_out")
    for analysis in (sl.layer_contributions, sl.head_contributions, sl.direction_contributions):
        with pytest.raises(sl.InputError, match=r"control edit is for 'attn_out' of layers \[0, 1, 2\]"):
            analysis(model, fitted(model), contrasts(), control=[elsewhere])


@pytest.mark.parametrize("site", ["mlp_out", "z"])
def test_permuted_edits_have_the_ranks_and_options_of_the_edit(site, model):
    demos = demonstrations()
    covariance = sl.capture(model, demos, site=site, position="mean", layers=[0, 2], progress=False)
    edit = sl.fit(covariance, energy=0.9, centre=True)
    permuted = sl.permuted(model, edit, demos, draws=3, seed=1)
    assert all(other.ranks == edit.ranks for other in permuted)
    for seed, other in enumerate(permuted, 3):
        shuffled = sl.capture(model, demos.shuffled(seed), site=site, position="mean", layers=[0, 2], progress=False)
        expected = sl.fit(shuffled, rank=edit.ranks, centre=True)
        torch.testing.assert_close(other.subspaces[2].keep, expected.subspaces[2].keep)
    assert not torch.allclose(permuted[0].subspaces[2].keep, edit.subspaces[2].keep)
    assert not torch.allclose(permuted[0].subspaces[2].keep, permuted[1].subspaces[2].keep)


def test_shuffling_swaps_some_and_keeps_all():
    demos = demonstrations(40)
    shuffled = demos.shuffled(0)
    swapped = [one != other for one, other in zip(demos, shuffled, strict=True)]
    assert 5 < sum(swapped) < 35
    for one, other, was_swapped in zip(demos, shuffled, swapped, strict=True):
        assert one.neutral == other.neutral
        assert {one.positive, one.negative} == {other.positive, other.negative}
        assert (one.positive == other.negative) == was_swapped
    assert demos.shuffled(0) == shuffled
    assert demos.shuffled(1) != shuffled


def test_an_edit_without_a_capture_cannot_be_permuted(model):
    x = torch.randn(5, 3, 32)
    with pytest.raises(sl.InputError, match="not fitted from captured activations"):
        sl.permuted(model, sl.fit_activations(x, x.flip(0), x.roll(1, 0)), demonstrations())


def test_a_fit_with_the_ranks_of_another_edit(model):
    covariance = sl.capture(model, demonstrations(), progress=False)
    edit = sl.fit(covariance, energy=(0.9, 0.99))
    again = sl.fit(covariance, rank=edit.ranks)
    assert again.ranks == edit.ranks
    for layer in edit.layers:
        np.testing.assert_allclose(again.subspaces[layer].keep, edit.subspaces[layer].keep)
    with pytest.raises(sl.InputError, match="expected a pair for each layer"):
        sl.fit(covariance, rank={0: (1, 1)})
    with pytest.raises(sl.InputError, match="above the width"):
        sl.fit(covariance, rank=dict.fromkeys(edit.layers, (1, 99)))


def test_figures_and_tables_take_any_token(results):
    found = results["directions"]
    label = next(iter(found.descriptions))
    odd = replace(found.descriptions[label], raises=[(" $$ | \n", 1.0)])
    odd = replace(found, descriptions=found.descriptions | {label: odd})
    axes = odd.plot()
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    assert any("$$" in text.get_text() for text in axes.get_legend().get_texts())
    plt.close(figure)
    table = markdown_table([{"raises": " $$ | \n", "value": 1.0}])
    assert len(table.splitlines()) == 3
    assert table.splitlines()[-1].replace(r"\|", "").count("|") == 3


def test_an_edit_without_directions_has_a_figure(model):
    found = sl.direction_contributions(model, fitted(model, rank=(0, 0)), contrasts(2))
    figure = found.plot().get_figure()
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    plt.close(figure)


def test_an_interval_is_held_out_as_the_value_of_what_was_chosen_is(results):
    found = results["layers"]
    with pytest.raises(sl.InputError, match="expected at least 20"):
        found.interval(found.labels[0], held_out=True)
    items = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    many = replace(found, item_values=items, item_effects=items.sum(1), control_values=None, control_effects=None)
    for label, value in many.top(2, held_out=True):
        interval = many.interval(label, held_out=True)
        assert (interval.mean, interval.n) == (pytest.approx(value), 15)
