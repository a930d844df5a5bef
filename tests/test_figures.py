"""Figures are read without their text: nothing in them is small, cut off or on top of something else."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from sea_lens._support.statistics import Interval
from sea_lens.plots import circuits, contributions, edits, findings, scores
from sea_lens.plots.axes import LETTER, broken

SIZES = {"few": (3, 8), "many": (32, 32)}
RNG = np.random.default_rng(0)


def numbers(n, n_controls=19):
    values = RNG.normal(size=n)
    width = RNG.random(n)
    return {
        "value": values,
        "low": values - width,
        "high": values + width,
        "control_low": -RNG.random(n),
        "control_high": RNG.random(n),
        "controls": np.full(n, n_controls),
    }


def layer_bars(layers, heads):
    frame = pd.DataFrame({"layer": range(layers), **numbers(layers)})
    return contributions.layer_bars(frame, 1.3, "Layers: path integral\nsum +1.300, off by 1e-07", controls=19)


def head_map(layers, heads):
    values = RNG.normal(size=(layers, heads)) / 30
    return contributions.head_map(
        values, "nats", "Heads: sufficiency\nwhole edit +0.412 nats", beyond=values > 0.05, controls=19
    )


def position_map(layers, heads):
    positions = range(-heads, 2)
    values = RNG.normal(size=(layers, len(positions)))
    return contributions.position_map(values, range(layers), positions, "Where the edit acts: +0.412 nats")


def directions(layers, heads):
    rows = [
        {"layer": layer, "head": np.nan, "side": side, "index": index}
        for layer in range(layers)
        for side in "+-"
        for index in range(8)
    ]
    rows += [{"layer": layer, "head": np.nan, "side": "norm", "index": np.nan} for layer in range(layers)]
    frame = pd.DataFrame(rows).assign(**numbers(len(rows)))
    # The four largest in one place of the spectrum, one above the other.
    frame.loc[frame["index"] == 2, "value"] += 3
    return contributions.direction_spectrum(frame, ["$antidisestablish"] * len(rows), 0.4, controls=19)


def net_directions(layers, heads):
    sizes = np.linspace(0.999, 0.01, 8)
    rows = [
        {"layer": layer, "head": np.nan, "side": side, "index": index, "eigenvalue": sign * sizes[index]}
        for layer in range(layers)
        for side, sign in (("+", 1), ("-", -1))
        for index in range(8)
    ]
    rows += [
        {"layer": layer, "head": np.nan, "side": "norm", "index": 0, "eigenvalue": None} for layer in range(layers)
    ]
    frame = pd.DataFrame(rows).assign(**numbers(len(rows)))
    return contributions.direction_spectrum(frame, ["$antidisestablish"] * len(rows), 0.4, controls=19)


def edges(layers, heads):
    rows = [
        {"layer": layer, "to_layer": layer + 1, "to": str(head), "way": way}
        for layer in range(min(layers, 4))
        for head in range(min(heads, 8))
        for way in "qkv"
    ]
    names = [f"layer {row['layer']} to {row['to_layer']}.{row['to']} by {row['way']}" for row in rows]
    return circuits.edge_bars(pd.DataFrame(rows).assign(**numbers(len(rows))), names, 0.4, "gradient", controls=19)


def recovery(layers, heads):
    n = min(layers * heads, 1024)
    frame = pd.DataFrame({"k": np.unique(np.geomspace(1, n, 20).astype(int))})
    found = numbers(len(frame))
    frame = frame.assign(kept=found["value"], low=found["low"], high=found["high"], lost=found["value"] / 2)
    frame = frame.assign(lost_low=frame["lost"] - 1, lost_high=frame["lost"] + 1, random_low=-1.0, random_high=1.0)
    return circuits.recovery_curve(frame.assign(control_low=-0.5, control_high=0.5), 0.4, "sufficiency", controls=19)


def dose(layers, heads):
    found = numbers(6)
    frame = pd.DataFrame({"strength": [0.25, 0.5, 1, 1.5, 2, 3], "effect": found["value"]})
    frame = frame.assign(low=found["low"], high=found["high"])
    costs = list(np.geomspace(0.001, 0.2, 6))
    return edits.dose_curve(frame, costs, np.tile(costs, (19, 1)), RNG.normal(size=(19, 6)) / 10, is_divergence=True)


def resampled(layers, heads):
    frame = pd.DataFrame({"part": ["effect", *(f"layer {i}" for i in range(layers))], **numbers(layers + 1)})
    return contributions.resampled_values(
        frame, RNG.normal(size=(20, layers + 1)), "20 fits on resampled demonstrations", "nats"
    )


def before_after(layers, heads):
    before = RNG.normal(size=144)
    interval = Interval(0.41, 0.12, 0.71)
    return edits.before_after(before, before + 0.4, interval, RNG.normal(size=19) / 10)


def spectra(layers, heads):
    left = {layer: [np.geomspace(1, 1e-6, 64), np.geomspace(1, 1e-7, 64)] for layer in range(layers)}
    return edits.spectra(left, dict.fromkeys(range(layers), (8.0, 12.0)))


def signatures(layers, heads):
    sizes = {layer: 10 * 1.3**layer for layer in range(layers)}
    return edits.layer_signatures(sizes, {layer: size / 8 for layer, size in sizes.items()})


def principal_angles(layers, heads):
    lines = [(layer, name, np.sort(RNG.random(8)) * 90) for layer in range(layers) for name in ("kept", "dropped")]
    return edits.principal_angles(
        lines, [60 + 30 * RNG.random((20, 8))], "Principal angles: kept and dropped subspaces"
    )


def comparison(layers, heads):
    rows = {"spectral edit": Interval(0.41, 0.12, 0.71), "mean-difference steering": Interval(0.0, -0.1, 0.1)}
    return edits.comparison(
        rows, list(RNG.normal(size=19) / 10), "fits to\nshuffled demonstrations", "log p(a) − log p(b)"
    )


def score_differences(layers, heads):
    table = numbers(layers)
    frame = pd.DataFrame(table, index=[f"accuracy/of some group {i}" for i in range(layers)])
    frame = frame.rename(columns={"value": "difference"}).assign(before=0.5, after=0.6)
    return scores.score_differences(frame, "BBQ, 1000 items: edited beside unedited, with 19 controls of the edit")


def changes(layers, heads):
    names = [f"variant {i}" for i in range(min(layers, 12))]
    found = [
        {"name": name, "score": score, "difference": 0.1, "low": 0.05, "high": 0.2, "controls": 19}
        | {"control_low": -0.1, "control_high": 0.03}
        for score in (*("accuracy", "accuracy/ambiguous", "accuracy/disambiguated")[:layers], "unknown_rate", "rate")
        for name in names
    ]
    return findings.changes(pd.DataFrame(found), names, "Differences of the released code: bias", "score")


def along(layers, heads):
    frames = [pd.DataFrame({"layer": range(layers), "name": name, **numbers(layers)}) for name in ("truth", "bias")]
    return findings.along(pd.concat(frames), "layer", "layer", "distance of the means", "Signature of every layer")


def along_numbers(layers, heads):
    n = [25, 50, 100, 200, 400, 432]
    frame = pd.DataFrame({"n": n, "name": "mc2", **numbers(len(n))})
    return findings.along(frame, "n", "demonstrations", "change of the score", "Data efficiency", log=True)


def clouds(layers, heads):
    labels = ["positive"] * 20 + ["negative"] * 20
    rows = [f"layer {i}" for i in range(min(layers, 4))]
    points = [[RNG.normal(size=(40, 2)) for _ in range(2)] for _ in rows]
    return findings.clouds(points, rows, ["unedited", "edited"], labels, "Activations of the last token, t-SNE")


def correlations(layers, heads):
    names = [f"{one}, {edit}" for one in ("truth", "bias") for edit in ("SEA", "mean difference", "ITI", "LEACE")]
    table = pd.DataFrame(np.corrcoef(RNG.normal(size=(8, layers))), index=names, columns=names)
    return findings.correlations(table, "Do the edits use the same heads?", "rank correlation")


FIGURES = (
    layer_bars,
    head_map,
    position_map,
    directions,
    net_directions,
    edges,
    recovery,
    dose,
    resampled,
    before_after,
    spectra,
    signatures,
    principal_angles,
    comparison,
    score_differences,
    changes,
    along,
    along_numbers,
    clouds,
    correlations,
)


@pytest.fixture(params=[(draw, size) for draw in FIGURES for size in SIZES], ids=lambda p: f"{p[0].__name__}-{p[1]}")
def figure(request):
    draw, size = request.param
    # The same numbers whatever other tests have drawn before.
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state
    found = draw(*SIZES[size]).get_figure(root=True)
    # The layout is settled by the first drawing.
    found.canvas.draw()
    yield found
    plt.close(found)


@pytest.fixture
def texts(figure, monkeypatch):
    """What is drawn: matplotlib keeps texts of ticks that lie beyond the ends of an axis."""
    drawn, draw = [], Text.draw

    def noting(text, renderer):
        if text.get_visible() and text.get_text().strip():
            drawn.append(text)
        draw(text, renderer)

    monkeypatch.setattr(Text, "draw", noting)
    figure.canvas.draw()
    return list(dict.fromkeys(drawn))


def test_nothing_is_smaller_than_nine_points(texts):
    assert {text.get_text(): text.get_fontsize() for text in texts if text.get_fontsize() < 9} == {}


def test_no_text_lies_on_another(texts):
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    # A pixel of leave, for the white around letters.
    overlapping = [
        (one, other)
        for (one, a), (other, b) in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]
    assert overlapping == []


def test_a_colour_bar_makes_no_title_shorter():
    told = "a title as long as the map and what stands beside it are wide"
    axes = contributions.head_map(np.ones((3, 8)), "nats", told)
    assert axes.get_title() == told
    plt.close(axes.get_figure(root=True))


def test_lines_of_a_title_are_about_equally_long_and_break_no_word():
    told = "framed: outside the range of 9 control edits, 4 of 24 (by chance about 5)"
    lines = broken(told, 70 * LETTER).split("\n")
    assert " ".join(lines) == told
    assert [len(line) > 30 for line in lines] == [True, True]
    assert broken("antidisestablishment of it", 21 * LETTER) == "antidisestablishment\nof it"
    assert broken("one\n\ntwo", 2.0) == "one\n\ntwo"


def test_a_pair_counts_once_though_it_stands_on_both_sides_of_the_diagonal():
    beyond = np.array([[True, True, False], [True, False, False], [False, False, False]])
    axes = contributions.interaction_map(np.eye(3), ["0", "1", "2"], "shapley", 0.4, beyond=beyond, controls=11)
    assert "2 of 6 (by chance about 1)" in axes.get_title().replace("\n", " ")
    plt.close(axes.get_figure(root=True))


def test_nothing_is_cut_off(figure, texts):
    frame = figure.bbox
    outside = [
        text.get_text()
        for text in texts
        if (box := text.get_window_extent()).x0 < -1
        or box.y0 < -1
        or box.x1 > frame.width + 1
        or box.y1 > frame.height + 1
    ]
    assert outside == []
