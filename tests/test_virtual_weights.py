"""Which heads write and read a direction, by weights: against products of a Hugging Face model's own matrices."""

import inspect
import math
import warnings
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from einops import einsum, rearrange, repeat
from plain import Plain
from scipy.stats import binom
from tiny import (
    _SIZES,
    BACKENDS,
    FAMILIES,
    N_LAYERS,
    VOCABULARY,
    contrasts,
    demonstrations,
    fitted,
    save_random_weights,
    save_tiny_model,
)
from transformers.models.olmo2.configuration_olmo2 import Olmo2Config

import sea_lens as sl
from sea_lens.contributions.direction_parts import DirectionParts
from sea_lens.models import head_weights as module
from sea_lens.models.head_weights import head_weights
from sea_lens.models.lens import Lens

pytestmark = pytest.mark.model
D, HEADS = 32, 4
BOTH = ("gpt2", "llama", "pythia", "gemma2", "qwen3")


def olmo2(folder):
    """A model whose norms stand behind attention alone, and on whole queries and keys."""
    save_tiny_model("llama", folder)
    sizes: dict[str, Any] = {
        "hidden_size": D,
        "intermediate_size": 48,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
    }
    config = Olmo2Config(vocab_size=VOCABULARY, num_hidden_layers=N_LAYERS, max_position_embeddings=48, **sizes)
    save_random_weights(config, folder, 0.15)
    return folder


def by_head(weight, d_head):
    """(d_model, heads · d_head) as (heads, d_model, d_head), one for each query head."""
    split = rearrange(weight, "d (heads a) -> heads d a", a=d_head)
    return repeat(split, "heads d a -> (heads n) d a", n=HEADS // len(split))


def matrices(plain, layer):
    """W_Q W_Kᵀ and W_V W_O of each head, with the gains of all norms, in float64; norms of the stream divide by 1."""
    attention, block = plain.attention(layer), plain.blocks[layer]
    output = plain.output(layer).weight.detach().double()
    if plain.kind == "gpt2":
        fused = attention.c_attn.weight.detach().double()
        ways, output = fused.split(D, 1), output.T
    elif plain.kind == "gpt_neox":
        fused = attention.query_key_value.weight.detach().double().T
        ways = [one.flatten(1) for one in fused.unflatten(1, (HEADS, 3, -1)).unbind(2)]
    else:
        ways = [getattr(attention, f"{way}_proj").weight.detach().double().T for way in "qkv"]
    d_head = output.shape[1] // HEADS
    if plain.kind != "olmo2":
        gain = plain.norm(layer).weight.detach().double() + (plain.kind == "gemma2")
        ways = [gain[:, None] * one for one in ways]
    if plain.kind in ("gpt2", "gpt_neox"):
        # Basis vectors of one length are a little shorter once their mean is taken away.
        ways = [(one - one.mean(0)) / math.sqrt(1 - 1 / D) for one in ways]
    if plain.kind in ("qwen3", "olmo2"):
        # These norms divide by the root mean square that a random stream gives.
        for place, way in enumerate("qk"):
            weight = getattr(attention, f"{way}_norm").weight.detach().double()
            squares = ways[place].square().sum(0).unflatten(0, (-1, d_head)).mean(1)
            squares = squares.mean().expand_as(squares) if plain.kind == "olmo2" else squares
            ways[place] = ways[place] * weight.repeat(ways[place].shape[1] // len(weight))
            ways[place] = ways[place] / squares.sqrt().repeat_interleave(d_head)
    query, key, value = (by_head(one, d_head) for one in ways)
    written = rearrange(output, "d (heads a) -> heads a d", heads=HEADS)
    if plain.kind in ("gemma2", "olmo2"):
        behind = block.post_attention_layernorm.weight.detach().double() + (plain.kind == "gemma2")
        written = written * behind
    return query @ key.mT, value @ written


def strengths(plain, layer, directions):
    """By way, of each direction and head."""
    scores, moved = matrices(plain, layer)
    left, right = "n d, heads d e -> n heads e", "n e, heads d e -> n heads d"
    return {
        "q": einsum(directions, scores, left).norm(dim=-1),
        "k": einsum(directions, scores, right).norm(dim=-1),
        "v": einsum(directions, moved, left).norm(dim=-1),
        "write": einsum(directions, moved, right).norm(dim=-1),
    }


def unit(n=5, seed=0):
    drawn = torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=-1)


def assert_strengths(model, plain):
    lens, directions, every = Lens.of(model), unit(), torch.eye(D, dtype=torch.float64)
    for layer, found in head_weights(lens, range(N_LAYERS), directions):
        assert not found.left_out
        expected, all_of_it = strengths(plain, layer, directions), strengths(plain, layer, every)
        for way, squares in found.squares.items():
            torch.testing.assert_close(squares.sqrt(), expected[way], rtol=1e-4, atol=0)
            torch.testing.assert_close(found.mean_squares[way], all_of_it[way].square().mean(0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("family", BOTH)
def test_strengths_are_norms_of_products_of_the_weights(family, backend, load_tiny, model_folders):
    assert_strengths(load_tiny(family, backend), Plain(model_folders[family]))


def test_norms_behind_attention_alone_count_by_their_gains(tmp_path):
    folder = olmo2(tmp_path)
    model = sl.load_model(str(folder), "bridge", device="cpu")
    assert_strengths(model, Plain(folder))
    assert sl.head_contributions(model, fitted(model), contrasts(2)).closure_error < 1e-4


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(BOTH)))
def test_nothing_is_left_out_of_other_families(family, backend, load_tiny):
    for _, found in head_weights(Lens.of(load_tiny(family, backend)), range(N_LAYERS), unit()):
        assert found.left_out == {}
        assert set(found.squares) == set(module.WAYS)


def test_half_precision_tells_the_same_to_its_digits(backend, load_tiny):
    wide, half = (load_tiny("llama", backend, dtype) for dtype in (torch.float32, torch.bfloat16))
    pairs = zip(*(head_weights(Lens.of(one), range(N_LAYERS), unit()) for one in (wide, half)), strict=True)
    for (_, one), (_, other) in pairs:
        assert not other.left_out
        for way, squares in one.squares.items():
            torch.testing.assert_close(other.squares[way].sqrt(), squares.sqrt(), rtol=0.02, atol=0)


def test_parts_of_the_basis_and_layers_in_turn_give_the_same(model, monkeypatch):
    whole = sl.virtual_weights(model, fitted(model))
    monkeypatch.setattr(module, "ROWS", 5)
    monkeypatch.setattr(module, "TOGETHER", 1)
    parts = sl.virtual_weights(model, fitted(model))
    assert parts.entries == whole.entries
    np.testing.assert_allclose(parts.strengths, whole.strengths, rtol=1e-5)
    np.testing.assert_array_equal(parts.p_values, whole.p_values)


def changed(folder, change, backend):
    """A model of a folder, which is changed."""
    plain = Plain(folder)
    with torch.no_grad():
        change(plain)
    plain.model.save_pretrained(folder)
    return sl.load_model(str(folder), backend, device="cpu")


def test_the_basis_inside_a_head_does_not_matter(tmp_path, backend):
    folder = save_tiny_model("llama", tmp_path)
    before = sl.load_model(str(folder), backend, device="cpu")
    edit = fitted(before)
    generator = torch.Generator().manual_seed(1)
    turns = {
        (way, group): torch.randn(8, 8, generator=generator) + 4 * torch.eye(8) for way in "qv" for group in (0, 1)
    }

    def change(plain):
        for attention in (block.self_attn for block in plain.blocks):
            for group in range(2):
                shared = slice(8 * group, 8 * group + 8)
                inside, values = turns["q", group], turns["v", group]
                attention.k_proj.weight[shared] = torch.linalg.inv(inside) @ attention.k_proj.weight[shared]
                attention.v_proj.weight[shared] = values.T @ attention.v_proj.weight[shared]
                for head in (2 * group, 2 * group + 1):
                    own = slice(8 * head, 8 * head + 8)
                    attention.q_proj.weight[own] = inside.T @ attention.q_proj.weight[own]
                    attention.o_proj.weight[:, own] = attention.o_proj.weight[:, own] @ torch.linalg.inv(values).T

    one, other = sl.virtual_weights(before, edit), sl.virtual_weights(changed(folder, change, backend), edit)
    np.testing.assert_allclose(other.strengths, one.strengths, rtol=2e-4)
    np.testing.assert_allclose(other.ratios, one.ratios, rtol=2e-4)


def along(vector):
    """An edit of all layers that keeps one direction and drops another at right angles to it."""
    other = torch.linalg.svd(vector[None]).Vh[1]
    neutral = torch.stack([3 * vector, other])[:, None].expand(-1, N_LAYERS, -1)
    positive, negative = neutral.clone(), neutral.clone()
    positive[1], negative[0] = 0, 0
    return sl.fit_activations(neutral.float(), positive.float(), negative.float(), rank=(1, 1))


@pytest.mark.parametrize(("way", "head"), [("write", (0, 2)), ("v", (2, 2)), ("q", (2, 1)), ("k", (2, 3))])
def test_a_head_that_does_nothing_else_comes_first(way, head, tmp_path, backend):
    planted = unit(1, seed=7)[0].float()
    layer, place = head
    own, group = slice(8 * place, 8 * place + 8), slice(8 * (place // 2), 8 * (place // 2) + 8)

    def change(plain):
        attention = plain.attention(layer)
        plain.norm(layer).weight[:] = 1.0
        if way == "write":
            rows = attention.o_proj.weight[:, own]
            attention.o_proj.weight[:, own] = planted[:, None] * (planted @ rows)
        else:
            weight = getattr(attention, f"{way}_proj").weight
            rows = own if way == "q" else group
            weight[rows] = (weight[rows] @ planted)[:, None] * planted

    model = changed(save_tiny_model("llama", tmp_path), change, backend)
    found = sl.virtual_weights(model, along(planted.double()), [1], labels=[(1, "+", 0)], draws=399)
    (entry, ratio), *_ = found.top(1, way)
    # What a matrix of one row makes of that row is the root of the width larger than of any direction.
    assert ratio == pytest.approx(math.sqrt(D), rel=1e-3)
    assert (entry[0], entry[3]) == ((1, "+", 0), way)
    assert entry[1:3] in (head, (layer, place ^ 1))
    assert found.corrected_p_values[found.entries.index(((1, "+", 0), *head, way))] == 1 / 400


@pytest.mark.parametrize(("circuit", "way"), [("head", "v"), ("by_key", "k"), ("by_query", "q")])
def test_planted_circuits_are_read_by_their_head_and_way(circuit, way, backend, build):
    bed = build(circuit, backend)
    found = sl.virtual_weights(bed.model, bed.edit, [0], labels=[(0, "-", 0)])
    (label, *head, by), ratio = found.top(1, ("q", "k", "v"))[0]
    assert (label, head, by) == ((0, "-", 0), [2, 1], way)
    assert ratio > 1.5
    assert not found.left_out


def test_random_directions_are_no_rarer_than_chance(load_tiny):
    model, draws = load_tiny("llama", BACKENDS[0]), 40
    edit = fitted(model)
    found = [
        sl.virtual_weights(model, sl.randomised(edit, seed), [1], directions=1, seed=seed) for seed in range(draws)
    ]
    most = binom.ppf(0.999, draws, 0.05)
    for entry in range(0, len(found[0].entries), 3):
        assert sum(one.p_values[entry] <= 0.05 for one in found) <= most
    for way in (False, True):
        own = [i for i, one in enumerate(found[0].entries) if (one[3] == "write") == way]
        assert sum(one.corrected_p_values[own].min() <= 0.05 for one in found) <= most


def test_planes_have_the_root_mean_square_of_their_directions(model, model_folders):
    edit = fitted(model, rank=(6, 2))
    found = sl.virtual_weights(model, edit, [1])
    label, n = next((label, n) for label, n in found.dimensions.items() if n > 1)
    basis = edit.subspaces[1]
    kept, dropped = basis.keep[0, :, :6].double(), basis.drop[0, :, :2].double()
    # Of the larger side what is at right angles to the other.
    rows = torch.linalg.svd(dropped.T @ kept).Vh[2:] @ kept.T
    assert (label, n) == ((1, "+", 0), 4)
    expected = strengths(Plain(model_folders["llama"]), 2, rows)["v"].square().mean(0).sqrt()
    places = [found.entries.index((label, 2, head, "v")) for head in range(HEADS)]
    np.testing.assert_allclose(found.strengths[places], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "site", "writers"),
    [
        ("llama", "mlp_out", {0, 1}),
        ("llama", "resid_post", {0, 1}),
        ("llama", "attn_out", {0, 1}),
        ("pythia", "mlp_out", {0}),
        ("pythia", "resid_post", {0, 1}),
        ("llama", "z", set()),
    ],
)
def test_writers_stand_in_front_of_the_edit_and_readers_behind_it(family, site, writers, backend, load_tiny):
    model = load_tiny(family, backend)
    frame = sl.virtual_weights(model, fitted(model, site=site), [1]).to_frame()
    assert set(frame.query("way == 'write'")["to_layer"]) == writers
    assert set(frame.query("way != 'write'")["to_layer"]) == {2}
    assert frame["head"].notna().all() == (site == "z")


def test_a_direction_of_a_head_is_what_it_writes(load_tiny, backend, model_folders):
    model, plain = load_tiny("gemma2", backend), Plain(model_folders["gemma2"])
    edit = fitted(model, site="z")
    found = sl.virtual_weights(model, edit, [0])
    label = next(label for label, n in found.dimensions.items() if n == 1)
    parts = DirectionParts(edit, "norm", "net")
    part = next(part for part in parts.parts(0) if part.label == label)
    subspaces, _ = parts.factors(0)
    column = (subspaces.keep if part.kept else subspaces.drop)[part.unit, :, part.first].double()
    output = plain.output(0).weight.detach().double().unflatten(1, (HEADS, -1))[:, part.unit]
    written = output @ column * (1 + plain.blocks[0].post_attention_layernorm.weight.detach().double())
    expected = strengths(plain, 2, written[None] / written.norm())["k"][0]
    places = [found.entries.index((label, 2, head, "k")) for head in range(HEADS)]
    np.testing.assert_allclose(found.strengths[places], expected, rtol=1e-4)


def test_controls_stand_beside_it_and_all_is_a_table_a_figure_and_a_sentence(model):
    edit = fitted(model)
    controls = [*sl.permuted(model, edit, demonstrations(), draws=3), edit]
    found = sl.virtual_weights(model, edit, directions=2, control=controls)
    assert found.control_ratios is not None
    np.testing.assert_allclose(found.control_ratios[-1], found.ratios)
    frame = found.to_frame()
    assert len(frame) == len(found.entries) == len(set(found.entries))
    assert frame["ratio"].tolist() == found.ratios.tolist()
    assert (frame["control_p"] >= 2 / 5).all()
    assert (frame["control_p_corrected"] >= frame["control_p"]).all()
    assert (frame["p_corrected"] >= frame["p"]).all()
    assert (frame["control_low"] <= frame["ratio"]).all()
    directions = sl.direction_contributions(model, edit, [sl.Contrast("w1 w2", " w3", " w4")], describe=0)
    assert set(found.directions) <= set(directions.labels)
    joined = frame.merge(directions.to_frame(), on=["layer", "side", "index"])
    assert len(joined) == len(frame)
    chosen = sl.virtual_weights(model, edit, labels=[found.directions[1]])
    assert chosen.directions == (found.directions[1],)
    assert found.top(3, "v") == sorted(found.top(99, "v"), key=lambda pair: -pair[1])[:3]
    assert "the strongest reader is head" in str(found)
    assert "4 control edits" in str(found)
    found.plot()
    chosen.plot()
    plt.close("all")


def test_what_is_not_linear_is_left_out_and_said(model):
    point = Lens.of(model).points["blocks.2.attn.hook_q"]
    point.add_hook(lambda x, hook: x / x.norm(dim=-1, keepdim=True).clamp_min(1e-3))
    edit = fitted(model)
    try:
        with pytest.warns(sl.SeaLensWarning, match="what is read of a sum is not the sum of what is read"):
            found = sl.virtual_weights(model, edit, [1])
    finally:
        point.remove_hooks()
    assert set(found.left_out) == {(2, "q"), (2, "k")}
    assert {way for *_, way in found.entries} == {"write", "v"}


def test_what_has_no_virtual_weights_is_refused(model):
    edit = fitted(model)
    with pytest.raises(sl.InputError, match="virtual_weights needs a linear edit: one through 'squared_exponential'"):
        sl.virtual_weights(model, fitted(model, feature="squared_exponential"))
    with pytest.raises(sl.InputError, match="only a spectral edit has singular directions"):
        sl.virtual_weights(model, sl.mean_difference(sl.capture(model, demonstrations(), progress=False)))
    with pytest.raises(sl.InputError, match="is no net direction of the edit in layers"):
        sl.virtual_weights(model, edit, labels=[(0, "norm", 0)])
    with pytest.raises(sl.InputError, match="no head writes or reads directions of layers"):
        sl.virtual_weights(model, fitted(model, site="z"), [N_LAYERS - 1])
    with pytest.raises(sl.InputError, match="other ranks"):
        sl.virtual_weights(model, edit, control=[fitted(model, rank=(1, 1))])
    with pytest.raises(sl.InputError, match="draws 0"):
        sl.virtual_weights(model, edit, draws=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sl.virtual_weights(model, edit)
    with pytest.raises(sl.InputError, match="unknown way 'o'"):
        found.top(1, "o")
    # Without the checks of types that tests add.
    top: Any = inspect.unwrap(sl.VirtualWeights.top)
    with pytest.raises(sl.InputError, match="way 5: expected one, or a list of them"):
        top(found, 1, 5)
    with pytest.raises(sl.InputError, match="need control="):
        found.control_p_values()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (5, "labels 5: expected a list of labels"),
        (math.nan, "labels nan: expected a list of labels"),
        ({0: 1}, "labels {0: 1}: expected a list of labels"),
        ("abc", "labels 'abc': expected a list of labels"),
        ([1], "labels: 1 is no label"),
        ([None], "labels: None is no label"),
        ([([1],)], r"labels: \(\[1\],\) is no label"),
        ([], "no label is given"),
        ([(9, "+", 0)], "is no net direction of the edit"),
    ],
)
def test_labels_that_are_none_are_one_clear_error(labels, message, model):
    call = inspect.unwrap(sl.virtual_weights)
    with pytest.raises(sl.InputError, match=message):
        call(model, fitted(model), labels=labels)


def test_controls_are_checked_as_the_edit_is_before_any_work(model, tmp_path, monkeypatch):
    edit = fitted(model)
    with pytest.raises(sl.InputError, match="a control edit acts through 'elu': expected a linear one"):
        sl.virtual_weights(model, edit, control=[fitted(model, feature="elu")])
    monkeypatch.setitem(_SIZES, "hidden_size", 16)
    narrow = fitted(sl.load_model(str(save_tiny_model("llama", tmp_path)), BACKENDS[0], device="cpu"))
    with pytest.raises(sl.MismatchError, match="the edit is for 'mlp_out'"):
        sl.virtual_weights(model, edit, control=[narrow])
    ran = []
    point = Lens.of(model).points["blocks.0.hook_resid_pre"]
    point.add_hook(lambda x, hook: ran.append(x))
    try:
        for measured in (
            sl.effect,
            sl.truncation,
            sl.frozen,
            sl.recovery,
            sl.stream_contributions,
            sl.layer_contributions,
            sl.direction_contributions,
            sl.head_contributions,
            sl.mediation,
            sl.interactions,
        ):
            with pytest.raises(sl.MismatchError, match="the edit is for 'mlp_out'"):
                measured(model, edit, contrasts(2), control=[narrow])
            assert not ran, measured
        with pytest.raises(sl.MismatchError, match="the edit is for 'mlp_out'"):
            sl.token_contributions(model, edit, ["w1 w2"], control=[narrow])
    finally:
        point.remove_hooks()
    assert not ran


@pytest.mark.skipif("hooked" not in BACKENDS, reason="HookedTransformer is of TransformerLens 3")
@pytest.mark.parametrize(("weight", "lost"), [("W_Q", {"q", "k"}), ("_W_V", {"v", "write"}), ("W_O", {"v", "write"})])
def test_weights_that_are_no_numbers_are_left_out_and_said(weight, lost, tmp_path):
    model = sl.load_model(str(save_tiny_model("llama", tmp_path)), "hooked", device="cpu")
    edit = fitted(model)
    with torch.no_grad():
        getattr(model.blocks[2].attn, weight)[0, 0, 0] = math.nan
    with pytest.warns(sl.SeaLensWarning, match="by nan"):
        found = sl.virtual_weights(model, edit, [1, 2])
    assert {way for layer, way in found.left_out if layer == 2} == lost
    assert np.isfinite(found.strengths).all()
    assert np.isfinite(found.ratios).all()
