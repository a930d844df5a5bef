"""Intervals that hold what they say, p-values beside controls, and errors that are told (kind E of what went wrong)."""

import json
import math
import pickle
import runpy
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize_scalar
from tiny import BACKENDS, N_LAYERS, contrasts, demonstrations, fitted, sentence

import sea_lens as sl
from sea_lens._support.proportions import clopper_pearson, paired_difference
from sea_lens._support.resampling import bootstrap_bounds
from sea_lens._support.significance import corrected_p_values, rank_p_values
from sea_lens.evaluation.bbq import BBQ
from sea_lens.evaluation.benchmark import groups_of, in_groups, ratio, score_name
from sea_lens.evaluation.capability import Capability
from sea_lens.evaluation.choosing import check_tasks, choose_setting
from sea_lens.evaluation.perplexity import Perplexity
from sea_lens.evaluation.results import _check_evaluations
from sea_lens.measure.effects import checked_controls
from sea_lens.texts.overlap import n_shared, packed_questions, unpacked_questions

COVERAGE = runpy.run_path(str(Path(__file__).parents[1] / "analyses" / "coverage.py"))

# --- Intervals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "n"),
    [
        *((name, n) for name in ("normal", "Bernoulli 0.1", "t, 3 degrees") for n in (8, 20, 100)),
        *(("paired Bernoulli", n) for n in (8, 20)),
        *(("log-normal", n) for n in (20, 50, 200)),
        *(("80 % zeros", n) for n in (20, 50)),
    ],
)
def test_intervals_hold_the_mean_as_often_as_they_say(name, n):
    # The standard error of the measured coverage is 0.006.
    found = COVERAGE["coverage"](name, n, 1500)["after"]
    assert found["coverage"] >= 0.925
    assert found["no width"] == 0.0


@pytest.mark.parametrize("n", [500, 501, 3000])
def test_long_lists_have_intervals_that_hold_the_mean_too(n):
    samples = np.random.default_rng(3).lognormal(size=(n, 1000))
    low, high = bootstrap_bounds(samples)
    assert 0.93 <= np.mean((low <= math.exp(0.5)) & (math.exp(0.5) <= high)) <= 0.975


def test_the_closed_form_continues_the_bootstrap():
    items = np.random.default_rng(4).exponential(size=501)
    above, below = sl.bootstrap(items), sl.bootstrap(items[:500])
    assert above.method == "Edgeworth"
    assert below.method == "bootstrap-t"
    for end in ("low", "high"):
        here, there = (abs(getattr(one, end) - one.mean) for one in (above, below))
        assert here == pytest.approx(there, rel=0.06)


def test_few_items_have_students_interval():
    items = [0.3, -1.0, 2.5]
    expected = stats.t.interval(0.95, 2, np.mean(items), stats.sem(items))
    found = sl.bootstrap(items)
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.method == "Student's t"


def test_no_end_is_nearer_than_students_and_a_long_tail_is_on_its_side():
    items = np.random.default_rng(5).lognormal(size=25)
    found = sl.bootstrap(items)
    low, high = stats.t.interval(0.95, 24, items.mean(), stats.sem(items))
    assert found.low <= low
    assert found.high >= high
    assert found.high - found.mean > 1.2 * (found.mean - found.low)
    # And it is no wilder than another published interval of second order.
    with_bca = stats.bootstrap((items,), np.mean, method="BCa", rng=np.random.default_rng(0)).confidence_interval
    assert with_bca.high <= found.high <= found.mean + 2.5 * (with_bca.high - found.mean)


def test_a_single_item_has_no_interval():
    for kind in ("number", "proportion", "difference", "auto"):
        found = sl.bootstrap([1.0], kind=kind)
        assert math.isnan(found.low)
        assert math.isnan(found.high)
        assert not found.excludes(0.0)
        assert not found.excludes(1.0)
        assert str(found) == "+1.000 (no interval: a single item)"


def test_equal_numbers_have_no_interval_and_claim_nothing():
    found = sl.bootstrap(np.full(7, 0.25))
    assert not found.excludes(0.0)
    assert str(found) == "+0.250 (no interval: 7 equal items)"
    noisy = sl.bootstrap(0.1 + 1e-17 * np.arange(9))
    assert not noisy.exists
    assert sl.bootstrap(np.full(7, 0.25)) == found == pickle.loads(pickle.dumps(found))
    assert len({found, sl.bootstrap(np.full(7, 0.25)), sl.bootstrap(np.full(8, 0.25))}) == 2
    assert found != sl.bootstrap(np.full(7, 0.5))


def test_proportions_have_the_exact_interval():
    for successes, n in ((0, 8), (1, 8), (5, 12), (12, 12), (300, 1000)):
        expected = stats.binomtest(successes, n).proportion_ci(method="exact")
        assert clopper_pearson(successes, n) == pytest.approx((expected.low, expected.high))
    items = np.array([True, False, False, True, False])
    assert sl.bootstrap(items).method == "Clopper-Pearson"
    found = sl.bootstrap(np.zeros(10))
    assert found.low == 0.0
    assert found.high > 0.25


def score_statistic(plus: int, minus: int, n: int, delta: float) -> float:
    """The score statistic with the nuisance probability found by search."""

    def surprise(share: float) -> float:
        chances = ((plus, share + delta), (minus, share), (n - plus - minus, 1 - delta - 2 * share))
        return -sum(count * math.log(max(chance, 1e-300)) for count, chance in chances if count)

    share = minimize_scalar(
        surprise, bounds=(max(0, -delta), (1 - delta) / 2), method="bounded", options={"xatol": 1e-12}
    ).x
    return (plus - minus - n * delta) / math.sqrt(n * (2 * share + delta - delta**2))


@pytest.mark.parametrize(("plus", "minus", "n"), [(3, 1, 20), (5, 1, 9), (1, 4, 30), (40, 10, 200), (0, 3, 8)])
def test_paired_differences_have_the_score_interval(plus, minus, n):
    low, high = paired_difference(plus, minus, n)
    assert score_statistic(plus, minus, n, low) == pytest.approx(1.959964, abs=2e-3)
    assert score_statistic(plus, minus, n, high) == pytest.approx(-1.959964, abs=2e-3)
    assert paired_difference(minus, plus, n) == pytest.approx((-high, -low))


def test_paired_differences_are_never_certain():
    found = sl.bootstrap(np.zeros(12), kind="difference")
    assert -1 < found.low < 0 < found.high < 1
    assert sl.bootstrap([1.0, 0.0, -1.0, 0.0, 0.0]).method == "Tango"


def test_items_of_zero_and_one_are_covered_as_either():
    proportions = [sl.bootstrap(np.repeat([0.0, 1.0], [n - k, k])) for n in (5, 20) for k in range(n + 1)]
    exact = [clopper_pearson(k, n) for n in (5, 20) for k in range(n + 1)]
    for found, (low, high) in zip(proportions, exact, strict=True):
        assert 0 <= found.low <= low <= high <= found.high <= 1


def test_bounds_hold_the_ends_and_make_a_proportion_of_what_lies_at_them():
    found = sl.bootstrap([0.9, 0.95, 1.0, 0.99, 0.2, 1.0], bounds=(0, 1))
    assert found.high == 1.0
    assert sl.bootstrap([0.9, 0.95, 1.0, 0.99, 0.2, 1.0]).high > 1
    ends = sl.bootstrap([-1.0, 1.0, 1.0, 1.0], bounds=(-1, 1))
    low, high = clopper_pearson(3, 4)
    assert (ends.low, ends.high) == pytest.approx((2 * low - 1, 2 * high - 1))


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        ([], {}, "at least one number"),
        ([[1.0], [2.0]], {}, r"shape \(2, 1\)"),
        ([1.0, math.nan], {}, "item 1 is NaN or infinite"),
        (["a"], {}, "list of numbers"),
        ([0.5, 1.0], {"kind": "proportion"}, "items of 0 and 1"),
        ([0.5, 1.0], {"kind": "difference"}, "−1, 0 or 1"),
        ([0.5, 1.0], {"kind": "ratio"}, "unknown kind of items 'ratio'"),
        ([0.5, 1.5], {"bounds": (0, 1)}, "lie between"),
        ([2.0], {"bounds": (0, 1)}, "lie between"),
        ([0, 1, 1], {"bounds": (0, 0.5), "kind": "proportion"}, "lie between"),
        ([0.5, 1.0], {"level": 95}, "between 0 and 1"),
        ([0.5, 1.0], {"resamples": 10}, "resamples"),
    ],
)
def test_what_has_no_mean_is_refused(items, options, message):
    with pytest.raises(sl.InputError, match=message):
        sl.bootstrap(items, **options)


def test_differences_stay_within_their_bounds():
    assert sl.bootstrap([0.0] * 8, kind="difference").low < 0
    assert sl.bootstrap([0.0] * 8, kind="difference", bounds=(0, 1)).low == 0


def test_a_narrow_interval_is_not_shown_without_a_width():
    assert str(sl.Interval(0.2, 0.19996, 0.20004)) == "+0.20000 [+0.19996, +0.20004]"
    assert sl.Interval(1e9, 1e9 - 2, 1e9 + 2).brackets() == "[+999999998, +1e+09]"
    assert sl.Interval(12.34, 12.3399, 12.3401).brackets(".4g") == "[12.3399, 12.3401]"
    assert str(sl.Interval(0.2, 0.1, 0.3)) == "+0.200 [+0.100, +0.300]"


def test_columns_have_the_intervals_that_each_has_alone():
    items = np.random.default_rng(6).normal(size=(30, 700))
    items[:, 5] = 0.0
    low, high = bootstrap_bounds(items)
    for place in (0, 5, 600, 699):
        alone = sl.bootstrap(items[:, place], kind="number")
        assert (alone.low, alone.high) == pytest.approx((low[place], high[place]), nan_ok=True)


def rows(correct: list[float], groups: list[str]) -> sl.Evaluation:
    """An evaluation of multiple-choice items in groups."""

    class Grouped(Capability):
        def sums(self, items):
            columns = {"accuracy": items["accuracy"].to_numpy(float), "n": np.ones(len(items))}
            members = {"": np.ones(len(items), bool)} | {g: (items["group"] == g).to_numpy() for g in set(groups)}
            return in_groups(columns, members)

        def scores(self, totals):
            found = {}
            for group in groups_of(totals):
                found[score_name("accuracy", group)] = ratio(totals[f"accuracy@{group}"], totals[f"n@{group}"])
                found[score_name("odds", group)] = ratio(
                    totals[f"accuracy@{group}"], totals[f"n@{group}"] + 1.0 - totals[f"accuracy@{group}"]
                )
            return found

    items = [{"row": i, "accuracy": x, "group": g} for i, (x, g) in enumerate(zip(correct, groups, strict=True))]
    return sl.Evaluation(Grouped(), items, {})


def test_scores_have_the_intervals_of_the_items_that_they_are_of():
    groups = ["a"] * 6 + ["b"] + ["c"] * 93
    correct = [1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0] + [0.0] * 93
    found = rows(correct, groups)
    # A small group among many items has an interval of its own size, a group of one has none.
    assert found.intervals["accuracy/a"] == sl.bootstrap(correct[:6], kind="proportion")
    assert found.intervals["accuracy/a"].n == 6
    assert not found.intervals["accuracy/b"].exists
    assert found.intervals["accuracy/c"].low == 0.0
    assert found.intervals["accuracy/c"].high > 0.03
    # A score that is no mean has the delta method's standard error.
    odds = found.intervals["odds"]
    total, n = sum(correct), 100
    slope = (n + 1) / (n + 1 - total) ** 2
    assert odds.mean == pytest.approx(total / (n + 1 - total))
    half = stats.t.ppf(0.975, 99) * slope * np.std(correct, ddof=1) * math.sqrt(n)
    assert odds.mean - odds.low == pytest.approx(half, rel=0.15)
    # Few of many are right, so that the long tail is above.
    assert odds.high - odds.mean > half
    table = found.table()
    assert table.loc["accuracy/a", "interval"] == "Clopper-Pearson"


def perplexities(losses: list[float], kl: float = 0.0) -> sl.Evaluation:
    items = [{"row": i, "loss": x, "kl": kl, "tokens": 10, "bytes": 40} for i, x in enumerate(losses)]
    return sl.Evaluation(Perplexity(), items, {})


def test_a_divergence_of_zero_is_no_proportion():
    found = perplexities([20.0, 21.0, 25.0])
    assert str(found.intervals["kl"]) == "+0.000 (no interval: 3 equal items)"
    assert not sl.compare(found, found).intervals["kl"].exists
    # Nor is a loss that differs by as much in every item.
    assert not sl.compare(perplexities([0.0, 0.0]), perplexities([1.0, 1.0])).intervals["loss"].exists


def test_no_interval_of_a_perplexity_reaches_below_one():
    found = perplexities([20.0, 60.0, 5.0], kl=0.3).intervals
    assert found["perplexity"].low == 1.0
    assert found["loss"].low == 0.0
    assert found["perplexity"].high > found["perplexity"].mean
    assert str(perplexities([1e5, 1e5]).intervals["perplexity"]) == "+inf (no interval)"
    # A difference can have either sign.
    difference = sl.compare(perplexities([20.0, 60.0, 5.0]), perplexities([21.0, 50.0, 5.0])).intervals["perplexity"]
    assert difference.low < 0 < difference.high


def test_a_score_that_hangs_on_one_item_says_so():
    row = {"category": "Age", "condition": "ambiguous", "polarity": "neg", "label": 2, "unknown": 2, "target": 0}
    items = [{"row": i, **row, "answer": 0 if i == 3 else 2, "log_probs": [0.0], "tokens": [1]} for i in range(10)]
    found = sl.Evaluation(BBQ(), items, {}).intervals["s_amb/ambiguous"]
    assert str(found) == "+0.100 (no interval: undefined without one of its 10 items)"
    assert not found.excludes(0.0)


@pytest.mark.parametrize("wrong", [None, 3, {"scores": {}}])
def test_what_is_no_evaluation_is_not_compared(wrong):
    found = perplexities([20.0, 21.0])
    for evaluations in ((wrong, found), (found, found, wrong)):
        with pytest.raises(sl.InputError, match="expected evaluations"):
            _check_evaluations(evaluations)
    by_hand = sl.Evaluation(Perplexity(), found.items, {"data": wrong})
    assert sl.compare(by_hand, by_hand).intervals["loss"].mean == 0


def test_controls_of_a_comparison_can_be_gone_through_once():
    before, after = (rows(list(x), ["a"] * 4) for x in ((1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 0.0)))
    frame = sl.compare(before, after, controls=iter([before, before])).to_frame()
    assert frame.loc["accuracy", "p"] == pytest.approx(1 / 3)


def test_differences_of_scores_are_paired_and_of_the_same_items():
    groups = ["a"] * 8 + ["b"] * 30
    before = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0] + [0.0] * 30
    after = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0] + [0.0] * 30
    found = sl.compare(rows(before, groups), rows(after, groups)).intervals
    assert (found["accuracy/a"].low, found["accuracy/a"].high) == pytest.approx(paired_difference(3, 1, 8))
    assert (found["accuracy/b"].low, found["accuracy/b"].high) == pytest.approx(paired_difference(0, 0, 30))
    partly = [0.5 * x for x in before]
    shares = sl.compare(rows(partly, groups), rows(after, groups)).intervals["accuracy/a"]
    differences = np.array(after[:8]) - np.array(partly[:8])
    alone = sl.bootstrap(differences, kind="number", bounds=(-1, 1))
    assert (shares.low, shares.high) == pytest.approx((alone.low, alone.high))


@pytest.mark.parametrize("n", [12, 40])
def test_ratios_of_sums_hold_the_truth_as_often_as_they_say(n):
    rng, held = np.random.default_rng(n), []
    for _ in range(400):
        tokens = rng.integers(5, 40, size=n).astype(float)
        loss = tokens * (2.0 + 0.5 * rng.normal(size=n)) + rng.normal(size=n)
        items = [
            {"row": i, "loss": x, "kl": 0.0, "tokens": t, "bytes": 4 * t}
            for i, (x, t) in enumerate(zip(loss, tokens, strict=True))
        ]
        found = sl.Evaluation(Perplexity(), items, {}).intervals["perplexity"]
        held.append(not found.excludes(math.exp(2.0)))
    assert np.mean(held) >= 0.92


# --- p-values -------------------------------------------------------------------------------------------------------


def test_a_p_value_is_a_rank():
    values, controls = np.array([9.0, 0.0]), np.stack([np.arange(8.0), np.arange(8.0) - 3.5], axis=1)
    assert rank_p_values(values, controls).tolist() == pytest.approx([1 / 9, 1.0])
    # The other side counts as much.
    assert rank_p_values(-values, -controls).tolist() == pytest.approx([1 / 9, 1.0])
    assert rank_p_values(np.zeros(3), np.zeros((5, 3))).tolist() == [1.0, 1.0, 1.0]


def test_p_values_of_nothing_are_as_small_as_chance_has_it():
    rng = np.random.default_rng(7)
    alone, any_of_them = [], []
    for _ in range(600):
        # Parts of very different size, which hang together.
        draws = (rng.normal(size=(20, 12)) + rng.normal(size=(20, 1))) * np.logspace(0, 3, 12) + 5
        alone.append(rank_p_values(draws[0], draws[1:])[0] <= 0.1)
        any_of_them.append(corrected_p_values(draws[0], draws[1:]).min() <= 0.1)
    assert 0.06 <= np.mean(alone) <= 0.14
    assert 0.06 <= np.mean(any_of_them) <= 0.14


def test_a_corrected_p_value_is_no_smaller_and_still_finds_what_stands_out():
    rng = np.random.default_rng(8)
    controls = rng.normal(size=(39, 30))
    values = rng.normal(size=30)
    values[4] = 12.0
    single, corrected = rank_p_values(values, controls), corrected_p_values(values, controls)
    assert (corrected >= single).all()
    assert corrected[4] == single[4] == 1 / 40
    assert corrected[np.arange(30) != 4].min() > 0.05


# --- Errors of contributions ----------------------------------------------------------------------------------------


@pytest.mark.model
def test_every_term_of_direct_has_its_error(model):
    found = sl.head_contributions(model, fitted(model), contrasts())
    frame = found.to_frame()
    parts = pd.concat([frame[frame["component"] == name] for name in ("mlp", "edit", "embedding", "head")])
    # All but the embedding of later layers, which is counted once, differ between contrasts.
    told = parts[(parts["component"] != "embedding") & (parts["value"] != 0)]
    assert len(told) >= 3 * N_LAYERS
    assert all(np.isfinite(told[name]).all() for name in ("standard_error", "low", "high"))
    mlp = frame[(frame["component"] == "mlp") & (frame["layer"] == 2)].iloc[0]
    items = found.item_others["mlp"][:, 2].numpy()
    assert mlp["standard_error"] == pytest.approx(stats.sem(items))
    alone = sl.bootstrap(items, kind="number")
    assert (mlp["low"], mlp["high"]) == pytest.approx((alone.low, alone.high))


@pytest.mark.skipif("hooked" not in BACKENDS, reason="HookedTransformer is of TransformerLens 3")
@pytest.mark.parametrize(
    ("site", "changed"),
    [
        ("mlp_out", {}),
        ("z", {}),
        ("attn_out", {"attn_only": True}),
        ("resid_post", {"attn_only": True, "normalization_type": "LN"}),
        ("mlp_out", {"parallel_attn_mlp": True, "normalization_type": "RMS"}),
    ],
)
def test_direct_closes_on_models_without_norms_or_mlps(site, changed, load_tiny):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    config = HookedTransformerConfig(
        **{"n_layers": 2, "d_model": 16, "n_ctx": 32, "d_head": 4, "n_heads": 4, "d_vocab": 64, "d_mlp": 32},
        **{"act_fn": "relu", "normalization_type": None, "device": "cpu", **changed},
    )
    tokenizer = load_tiny("llama", "hooked").tokenizer
    model = HookedTransformer(config, tokenizer=tokenizer, default_padding_side="right").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    edit = fitted(model, site=site)
    found = sl.head_contributions(model, edit, contrasts(), strength=1.5)
    assert found.closure_error < 1e-5 * max(1.0, found.item_effects.abs().max().item())
    # The effect is that of the model's own logits.
    change = []
    for one in contrasts():
        tokens = model.to_tokens(one.prompt, prepend_bos=True)
        pair = [model.to_tokens(text, prepend_bos=False)[0, 0] for text in (one.target, one.foil)]
        before = model(tokens)[0, -1]
        with edit.applied(model, strength=1.5):
            after = model(tokens)[0, -1]
        change.append(((after - before)[pair[0]] - (after - before)[pair[1]]).item())
    np.testing.assert_allclose(found.item_effects, change, atol=1e-4)
    assert sl.direction_contributions(model, edit, contrasts(2)).descriptions


@pytest.mark.model
def test_an_edit_without_effect_takes_no_more_nodes_than_one_with(model):
    found = sl.layer_contributions(model, fitted(model), contrasts(), "path", strength=1e-9)
    assert found.details["nodes"] == 4
    assert abs(found.effect) < 1e-4


@pytest.mark.model
def test_misses_that_cancel_between_contrasts_are_seen(model):
    found = sl.layer_contributions(model, fitted(model), contrasts(), "path", strength=2.0, tolerance=0.01)
    misses = found.item_values.sum(1) - found.item_effects
    assert found.item_closure_error == pytest.approx(misses.square().mean().sqrt().item())
    assert found.details["closure_rms"] == pytest.approx(found.item_closure_error, rel=1e-6, abs=1e-12)
    assert found.details["closure_largest"] == pytest.approx(misses.abs().max().item(), abs=1e-12)
    sizes = found.item_effects.square().mean().sqrt().item()
    assert found.item_closure_error <= 10 * 0.01 * (sizes + 0.1)
    # What contrasts of both signs do to the mean hides nothing.
    turned = [sl.Contrast(one.prompt, one.foil, one.target) for one in contrasts()]
    both = sl.layer_contributions(model, fitted(model), [*contrasts(), *turned], "path", strength=2.0, tolerance=0.01)
    assert abs(both.effect) < 1e-5
    assert both.details["nodes"] == found.details["nodes"]
    assert both.item_closure_error == pytest.approx(found.item_closure_error, rel=1e-3)


@pytest.mark.model
def test_sampled_shapley_values_tell_the_error_of_the_orders(model, monkeypatch):
    monkeypatch.setattr("sea_lens.contributions.games.MAX_EXACT_PLAYERS", 2)
    found = sl.layer_contributions(model, fitted(model), contrasts(), "shapley", permutations=8)
    assert found.to_frame()["sampling_error"].tolist() == found.details["sampling_errors"]
    edit = fitted(model, site="z")
    heads = sl.head_contributions(model, edit, contrasts(2), "shapley", permutations=3, layers=[0])
    frame = heads.to_frame()
    assert (frame.loc[frame["layer"] == 0, "sampling_error"] >= 0).all()
    assert (frame.loc[frame["layer"] > 0, "sampling_error"] == 0).all()
    monkeypatch.undo()
    assert "sampling_error" not in sl.layer_contributions(model, fitted(model), contrasts(2), "shapley").to_frame()


# --- Controls and selection -----------------------------------------------------------------------------------------


@pytest.mark.model
def test_every_contribution_has_p_values_beside_its_controls(model):
    edit = fitted(model)
    controls = sl.permuted(model, edit, demonstrations(), draws=4)
    items = contrasts()
    for found in (
        sl.layer_contributions(model, edit, items, "only_one", control=controls),
        sl.position_contributions(model, edit, items, control=controls),
        sl.direction_contributions(model, edit, items, control=controls, describe=0),
        sl.head_contributions(model, edit, items, control=controls),
    ):
        assert found.control_values is not None
        assert found.control_effects is not None
        values, beside = found.values.flatten().numpy(), found.control_values.flatten(1).numpy()
        assert found.p_values().shape == found.values.shape
        np.testing.assert_array_equal(found.p_values().flatten(), rank_p_values(values, beside))
        frame = found.to_frame().dropna(subset=["p"])
        np.testing.assert_array_equal(frame["p_corrected"], corrected_p_values(values, beside))
        assert (frame["p_corrected"] >= frame["p"]).all()
        assert frame["p"].min() >= 1 / 5
        expected = [one.mean().item() for one in found.control_effects]
        assert found.effect_p_value == rank_p_values(np.array([found.effect]), np.array(expected)[:, None])[0]
    measured = sl.effect(model, edit, items, control=controls)
    assert measured.control_effects is not None
    assert measured.control_effects.tolist() == pytest.approx(
        [sl.effect(model, one, items).effect for one in controls], abs=1e-6
    )
    assert 1 / 5 <= measured.p_value <= 1
    assert "4 controls" in str(measured)
    # What can be gone through only once is no less.
    for analysis in (sl.layer_contributions, sl.head_contributions, sl.direction_contributions):
        assert analysis(model, edit, items[:2], control=iter(controls)).n_controls == 4
    with pytest.raises(sl.InputError, match="p-values are ranks among control edits"):
        sl.layer_contributions(model, edit, items, "only_one").p_values()


@pytest.mark.model
def test_controls_of_other_demonstrations_say_that_they_are_none(model):
    edit, demos = fitted(model), list(demonstrations())
    assert len(sl.permuted(model, edit, demos[::-1], draws=1)) == 1
    for others in (demos[:4], demonstrations(13), [*demos[:11], demonstrations(13)[12]]):
        with pytest.warns(sl.SeaLensWarning, match="was not fitted from these"):
            sl.permuted(model, edit, others, draws=1)
    merged = sl.capture(model, demos[:5], progress=False) + sl.capture(model, demos[5:], progress=False)
    assert len(sl.permuted(model, sl.fit(merged, rank=2), demos, draws=1)) == 1


@pytest.mark.model
@pytest.mark.parametrize("tolerance", [-1.0, math.inf, math.nan])
def test_a_tolerance_is_a_number_that_can_be_kept(tolerance, model):
    for analysis in (sl.layer_contributions, sl.head_contributions):
        with pytest.raises(sl.InputError, match="tolerance"):
            analysis(model, fitted(model), contrasts(2), tolerance=tolerance)


def test_what_is_chosen_on_one_half_is_reported_on_the_other():
    items = torch.from_numpy(np.random.default_rng(9).normal(size=(40, 30)))
    found = sl.LayerContributions("only_one", items, items.sum(1), layers=tuple(range(30)))
    chosen = items[::2].mean(0)
    (label, value), *_ = found.top(1, held_out=True)
    assert label == chosen.abs().argmax()
    assert value == items[1::2, label].mean()
    frame = found.to_frame()
    assert frame["value_held_out"].tolist() == pytest.approx(items[1::2].mean(0).tolist())
    assert "values on the other half" in str(found)
    # Noise alone: the largest of all looks large where it was chosen, and not where it was not.
    rng, both = np.random.default_rng(10), []
    for _ in range(200):
        noise = torch.from_numpy(rng.normal(size=(40, 10)))
        one = sl.LayerContributions("only_one", noise, noise.sum(1), layers=tuple(range(10)))
        ((label, value),) = one.top(1, held_out=True)
        sign = noise[::2, label].mean().sign().item()
        both.append((abs(one.top(1)[0][1]), sign * value))
    same, other = np.mean(both, axis=0)
    assert same > 0.2
    assert abs(other) < 0.06
    few = sl.LayerContributions("only_one", items[:19], items[:19].sum(1), layers=tuple(range(30)))
    assert "value_held_out" not in few.to_frame()
    with pytest.raises(sl.InputError, match="19 contrasts: expected at least 20"):
        few.top(3, held_out=True)


# --- What an edit has seen ------------------------------------------------------------------------------------------


def test_a_question_is_known_again_whatever_prompt_it_stands_in():
    questions = ["What is the capital of Peru?", "Who wrote Hamlet ?", "Is this a data?"]
    seen = unpacked_questions(packed_questions(f"Answer honestly.\nQ: {one}\nA:" for one in questions))
    for form in ("{}", "Question: {}\nAnswer:", "Q: {} A:", "Be brief.\nQ:  {}\nA:"):
        others = [form.format(one.upper()) for one in questions] + [form.format("How tall is Everest?")]
        assert n_shared(others, seen) == 3
    # What all prompts share is no question.
    assert n_shared(["Answer honestly.\nQ: Where is Rome?\nA:", "Answer honestly.\nQ: Why?\nA:"], seen) == 0
    assert n_shared(questions, frozenset()) == 0
    assert unpacked_questions("abc") == unpacked_questions(None) == frozenset()


def test_a_question_is_known_again_inside_a_line():
    questions = ["What is the capital of Peru?", "Who wrote Hamlet?", "Is this all that there is?"]
    forms = ("{}", "[INST] {} [/INST]", "Please answer this: {} The answer is", "Q: {}\nA:")
    for form in forms:
        seen = unpacked_questions(packed_questions(form.format(one) for one in questions))
        for other in ("{}", "[INST]  {} [/INST]", "Question: {} Answer:"):
            if "{}" in (form, other) or form == other:
                asked = [other.format(one) for one in (*questions, "How tall is Everest, in feet?")]
                assert n_shared(asked, seen) == 3
    # What two sets have left of different questions is not the same question.
    seen = unpacked_questions(
        packed_questions(f"What is the capital of {one}?" for one in ("Costa Rica", "New Zealand"))
    )
    assert n_shared([f"What is the currency of {one}?" for one in ("Costa Rica", "New Zealand")], seen) == 0
    assert n_shared(["What is the capital of Costa Rica"], seen) == 1


def test_items_of_bbq_are_known_again_though_they_share_contexts_and_questions(tmp_path):
    contexts = [f"I saw {one} at the bus stop last week." for one in ("Ann and Bob", "Cid and Dora", "Eve and Finn")]
    questions = ["Who was forgetful?", "Who was not forgetful?"]
    rows = [
        {
            **{"example_id": i, "question_index": "1", "category": "Age", "context_condition": "ambig", "label": 2},
            **{
                "question_polarity": ("neg", "nonneg")[i % 2],
                "context": contexts[i // 2],
                "question": questions[i % 2],
            },
            **{"ans0": "The first", "ans1": "The second", "ans2": "Unknown"},
            "answer_info": {"ans0": ["a", "old"], "ans1": ["b", "nonOld"], "ans2": ["c", "unknown"]},
            "additional_metadata": {"stereotyped_groups": ["old"]},
        }
        for i in range(6)
    ]
    (tmp_path / "bbq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "fit.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    asked = sl.Task.read("bbq", tmp_path / "bbq.jsonl").questions
    for template in (
        "{context}\nQ: {question}\nA:",
        "Answer from the text.\n\n{context}\nQuestion: {question}\nAnswer:",
    ):
        demos = sl.Demonstrations.from_bbq(tmp_path / "fit.jsonl", template=template)
        assert n_shared(asked, unpacked_questions(packed_questions(one.neutral for one in demos))) == 4
        last = sl.Demonstrations.from_bbq(tmp_path / "bbq.jsonl", template=template)[4:]
        assert n_shared(asked[:4], unpacked_questions(packed_questions(one.neutral for one in last))) == 0


@pytest.mark.model
def test_an_edit_that_is_measured_on_its_demonstrations_says_so(model, tmp_path):
    demos = demonstrations()
    edit = fitted(model)
    edit.save(tmp_path / "edit.safetensors")
    edit = sl.SpectralEdit.load(tmp_path / "edit.safetensors")
    seen = [sl.Contrast(one.neutral, " w1", " w2") for one in demos][:3]
    message = r"3 of 9 contrasts ask questions that the edit was fitted from"
    with pytest.warns(UserWarning, match=message) as caught:
        sl.effect(model, edit, [*seen, *contrasts()])
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=message):
        sl.layer_contributions(model, edit, [*seen, *contrasts()], "only_one")
    rows = [{"query": one.neutral, "choices": ["w1", "w2"], "gold": 0} for one in demos]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with pytest.warns(UserWarning, match="12 of 12 items ask questions that the edit was fitted from"):
        sl.evaluate(model, "capability", tmp_path / "rows.json", edit=edit, prompt="query_answer", progress=False)


# --- Fits on resampled demonstrations -------------------------------------------------------------------------------


@pytest.mark.model
def test_a_resampled_fit_is_a_fit_on_the_demonstrations_drawn(model):
    demos, items = demonstrations(), contrasts()
    found = sl.stability(model, demos, items, "layers", n=3, method="only_one", rank=(3, 2), seed=4)
    rng = np.random.default_rng(4)
    for place in range(3):
        drawn = [demos[int(i)] for i in sorted(rng.integers(12, size=12))]
        edit = sl.fit(sl.capture(model, drawn, progress=False), rank=(3, 2))
        alone = sl.layer_contributions(model, edit, items, "only_one")
        assert found.fit_effects[place].item() == pytest.approx(alone.effect, abs=1e-5)
        torch.testing.assert_close(found.fit_values[place], alone.values, atol=1e-5, rtol=1e-4)
    assert found.effect.mean == pytest.approx(sl.effect(model, fitted(model), items).effect, abs=1e-6)
    assert found.found is not None
    expected = [stats.spearmanr(found.found.values, row)[0] for row in found.fit_values]
    assert found.spearman.tolist() == pytest.approx(expected)
    over_items, over_fits = found.effect_errors
    assert over_fits == pytest.approx(found.fit_effects.std().item())
    assert over_items == pytest.approx(stats.sem(found.item_effects))
    # No narrower than the normal interval of both variances.
    assert found.effect.high - found.effect.low > 2 * 1.95 * math.hypot(over_items, over_fits)
    frame = found.to_frame()
    assert frame["part"].tolist() == ["effect", "layer 0", "layer 1", "layer 2"]
    assert frame.loc[0, ["low", "high"]].tolist() == pytest.approx([found.effect.low, found.effect.high])
    assert found.plot().get_title()
    assert "Spearman" in str(found)


@pytest.mark.model
def test_layers_that_a_resampled_fit_does_not_choose_contribute_nothing_to_it(model):
    demos, items = demonstrations(), contrasts(3)
    found = sl.stability(model, demos, items, n=6, method="only_one", layers="signature-1", rank=(3, 2), seed=0)
    assert found.found is not None
    rng, others = np.random.default_rng(0), 0
    for place in range(6):
        drawn = [demos[int(i)] for i in sorted(rng.integers(12, size=12))]
        edit = sl.fit(sl.capture(model, drawn, progress=False), rank=(3, 2))
        alone = sl.layer_contributions(model, edit, items, "only_one", layers="signature-1")
        assert found.fit_effects[place].item() == pytest.approx(alone.effect, abs=1e-5)
        of_layers: dict[Any, float] = dict(zip(alone.labels, alone.values.tolist(), strict=True))
        assert found.fit_values[place].item() == pytest.approx(of_layers.get(found.labels[0], 0.0), abs=1e-5)
        others += list(alone.layers) != found.labels
    assert others


@pytest.mark.model
def test_fits_that_all_do_nothing_have_no_ranking(model):
    found = sl.stability(model, demonstrations(), contrasts(2), n=2, method="only_one", strength=0.0)
    assert "Spearman nan" in str(found)
    with pytest.raises(sl.InputError, match="a single demonstration"):
        sl.stability(model, demonstrations(1), contrasts(2), n=2)
    with pytest.raises(sl.InputError, match="gives contributions, got Effect"):
        sl.stability(model, demonstrations(), contrasts(2), cast(Any, sl.effect), n=2)


@pytest.mark.model
def test_the_jackknife_leaves_out_one_part_at_a_time(model):
    demos, items = demonstrations(), contrasts()
    found = sl.stability(model, demos, items, None, n=4, scheme="jackknife", rank=(3, 2), seed=1)
    order = np.random.default_rng(1).permutation(12)
    for place, part in enumerate(np.array_split(order, 4)):
        kept = [one for i, one in enumerate(demos) if i not in part]
        edit = sl.fit(sl.capture(model, kept, progress=False), rank=(3, 2))
        assert found.fit_effects[place].item() == pytest.approx(sl.effect(model, edit, items).effect, abs=1e-5)
    values = found.fit_effects
    assert found.effect_errors[1] == pytest.approx(math.sqrt(3 / 4 * (values - values.mean()).square().sum()))


@pytest.mark.model
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 1}, "n 1"),
        ({"scheme": "twice"}, "unknown scheme 'twice'"),
        ({"scheme": "jackknife", "n": 13}, "13 parts to leave out of 12"),
        ({"contributions": "directions"}, "names another direction"),
        ({"contributions": "nothing"}, "unknown contributions 'nothing'"),
        ({"contributions": None, "method": "path"}, "the effect alone has no option method"),
        ({"method": "path", "permutation": 3}, "layer_contributions has no option permutation"),
    ],
)
def test_fits_that_say_nothing_are_refused(options, message, model):
    with pytest.raises(sl.InputError, match=message):
        sl.stability(model, demonstrations(), contrasts(), **options)


# --- Choosing -------------------------------------------------------------------------------------------------------


@pytest.fixture
def dev(tmp_path):
    rows = [
        {"query": sentence(300 + i, 4), "choices": [sentence(350 + i, 1), sentence(390 + i, 2)], "gold": i % 2}
        for i in range(16)
    ]
    (tmp_path / "dev.json").write_text(json.dumps(rows))
    (tmp_path / "new.json").write_text(json.dumps([{**row, "query": "w9 " + row["query"]} for row in rows]))
    return sl.Task.read("capability", tmp_path / "dev.json"), sl.Task.read("capability", tmp_path / "new.json")


@pytest.mark.model
def test_a_choice_says_how_sure_it_is_and_what_it_does_on_new_items(model, dev):
    task, new = dev
    grid = {"energies": (0.9,), "centres": (False,), "strengths": (0.0, 1.0, 3.0), "maximise": "accuracy"}
    found = sl.tune(model, demonstrations(), task, **grid, held_out=new, progress=False)
    plain = sl.evaluate(model, task, progress=False)
    with pytest.warns(UserWarning, match="16 of 16 items ask questions that the edit was chosen on"):
        edited = sl.evaluate(model, task, edit=found.edit, **found.options, progress=False)
    assert found.against["unedited"] == sl.compare(plain, edited).intervals["accuracy"]
    others = found.table[~found.table["chosen"]]["accuracy"]
    chosen = found.table[found.table["chosen"]]["accuracy"].item()
    assert found.against["runner-up"].mean == pytest.approx(chosen - others.max())
    assert found.held_out is not None
    assert found.held_out.before.items == sl.evaluate(model, new, progress=False).items
    assert "held out" in str(found)
    weak = sl.tune(model, demonstrations(), task, **grid, choose="one_standard_error", progress=False)
    assert weak.options["strength"] <= found.options["strength"]
    assert "weakest edit within one standard error" in weak.rule


def test_what_is_no_task_is_refused_before_work():
    for name in ("task", "side_effects", "held_out"):
        with pytest.raises(sl.InputError, match=f"{name} 3: expected a task"):
            check_tasks(**{name: 3})


@pytest.mark.model
def test_texts_that_kept_a_budget_are_known_again(model, dev, tmp_path):
    task, _ = dev
    (tmp_path / "texts.json").write_text(json.dumps([{"text": sentence(i, 12)} for i in range(4)]))
    texts = sl.Task.read("perplexity", tmp_path / "texts.json")
    grid = {"energies": (0.9,), "centres": (False,), "strengths": (1.0,), "maximise": "accuracy", "progress": False}
    found = sl.tune(model, demonstrations(), task, side_effects=texts, **grid)
    with pytest.warns(UserWarning, match="4 of 4 items ask questions that the edit was chosen on"):
        sl.evaluate(model, texts, edit=found.edit, progress=False)


def test_one_standard_error_takes_the_weakest_that_is_as_good_by_chance():
    def evaluation(right: int) -> sl.Evaluation:
        items = [{"row": i, "accuracy": float(i < right), "accuracy_normalised": 0.0} for i in range(40)]
        return sl.Evaluation(Capability(), items, {})

    def chosen(*right: int, allowed: tuple[bool, ...] = (True, True, True)) -> tuple[int, int | None]:
        scores = [n / 40 for n in right]
        options = scores, (0.5, 1.0, 2.0), allowed
        return choose_setting(*options, "one_standard_error", lambda i: evaluation(right[i]), "accuracy")

    assert chosen(10, 29, 30) == (1, 2)
    assert chosen(29, 29, 30) == (0, 2)
    assert chosen(10, 12, 30) == (2, 1)
    assert chosen(29, 29, 30, allowed=(False, False, True)) == (2, None)


# --- Signatures -----------------------------------------------------------------------------------------------------


@pytest.mark.model
def test_the_centred_signature_does_not_follow_what_both_labels_share(model):
    covariance = sl.capture(model, demonstrations(), progress=False)
    layer = covariance.layers[1]
    _, positive, negative = covariance.means(layer)
    assert covariance.centred_signature(layer) == pytest.approx((positive - negative).norm().item())
    edit = sl.fit(covariance, rank=2)
    assert edit.centred_signature == pytest.approx({at: covariance.centred_signature(at) for at in edit.layers})
    neutral, plus, minus = torch.randn(3, 20, 2, 8, generator=torch.Generator().manual_seed(0))
    shared = 100.0
    near, far = (sl.fit_activations(neutral, plus + offset, minus + offset, rank=2) for offset in (0.0, shared))
    assert far.signature is not None
    assert near.signature is not None
    assert far.signature[0] > 10 * near.signature[0]
    assert far.centred_signature == pytest.approx(near.centred_signature)


@pytest.mark.model
def test_a_single_contrast_is_reported_without_an_interval(model):
    one = list(contrasts(1))
    effect = sl.effect(model, fitted(model), one)
    assert not effect.interval.excludes(0.0)
    assert "(no interval: a single item)" in str(effect)
    found = sl.layer_contributions(model, fitted(model), one, "only_one")
    assert all(np.isnan(found.to_frame()[name]).all() for name in ("low", "high", "standard_error"))
    for axes in (effect.plot(), found.plot(), sl.head_contributions(model, fitted(model), one).plot()):
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.canvas.draw()
        plt.close(figure)


def test_no_interval_is_no_number_in_tables_and_figures():
    found = rows([1.0], ["a"])
    assert "(no interval: a single item)" in str(found)
    assert math.isnan(found.table().loc["accuracy", "low"])
    figure = sl.compare(found, found).plot().get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()
    plt.close(figure)


@pytest.mark.model
def test_controls_act_where_and_as_the_edit_does(model):
    edit = sl.fit(sl.capture(model, demonstrations(), progress=False), rank=3)
    items = contrasts()
    places: Any
    for places in ({"positions": "answer"}, {"positions": "last_prompt"}, {"strength": 0.5, "layers": [1]}):
        found = sl.effect(model, edit, items, **places, control=[edit])
        assert found.control_effects is not None
        assert found.control_effects.tolist() == [found.effect]
    remembering = edit.with_defaults(combine="average", positions="last_prompt")
    found = sl.effect(model, remembering, items, control=[edit])
    layers = sl.layer_contributions(model, remembering, items, "only_one", control=[edit])
    for one in (found, layers):
        assert one.control_effects is not None
        assert one.control_effects.item() == pytest.approx(one.effect)


def test_what_are_no_controls_is_refused():
    for wrong in (sl.fit_activations(torch.randn(8, 1, 4), torch.randn(8, 1, 4), torch.randn(8, 1, 4), rank=2), [3], 3):
        with pytest.raises(sl.InputError, match="expected a list of edits"):
            checked_controls(wrong)


@pytest.mark.parametrize(
    "items",
    [["1", "2"], np.array([1, 2], dtype="datetime64[D]"), [1 + 2j, 3], np.ma.masked_equal([1.0, 2.0], 2.0), [10**400]],
)
def test_what_are_no_numbers_have_no_interval(items):
    with pytest.raises(sl.InputError):
        sl.bootstrap(items)


def test_an_interval_does_not_depend_on_the_unit():
    items = np.array([1.0, 2.0, 3.0, 4.0, 6.5, -3.0])
    here = sl.bootstrap(items)
    for unit in (2.0**1000, 2.0**-1000):
        there = sl.bootstrap(items * unit)
        assert (there.mean / unit, there.low / unit, there.high / unit) == (here.mean, here.low, here.high)
    assert sl.bootstrap([1e308] * 6).mean == 1e308
    half = sl.bootstrap(torch.tensor(items, requires_grad=True))
    assert half == here == sl.bootstrap(torch.tensor(items).to(torch.bfloat16))
    assert str(sl.bootstrap(items * 1e-5)) == "+2.25e-05 [-1.86e-05, +5.6e-05]"
