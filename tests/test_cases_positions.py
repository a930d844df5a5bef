"""Where in a text an edit acts, against passes of whole rows with masks made by hand (docs/method.md 3.7)."""

import contextlib
import json
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny import contrasts, demonstrations, fitted, sentence, tokens
from torch import Tensor

import sea_lens as sl
from sea_lens.measure.shared_prompts import log_probs
from sea_lens.measure.spans import Span
from sea_lens.models.cache import Past
from sea_lens.models.lens import Lens
from sea_lens.models.token_positions import Told, positions_name
from sea_lens.models.tokens import encode_completions, pad

pytestmark = pytest.mark.model
LAYERS = [0, 2]


def every_third(ids: Tensor, prompt: int) -> Tensor:
    """A function that looks at earlier tokens alone: True where their sum is a multiple of 3, or a prompt ends."""
    return (ids.cumsum(0) % 3 == 0) | (torch.arange(len(ids)) == prompt - 1)


CHOICES = [*sl.POSITIONS, every_third]
NAMED = [str(getattr(choice, "__name__", choice)) for choice in CHOICES]


def by_hand(choice: Any, row: Sequence[int], prompt: int) -> Tensor:
    """Where a choice acts in one row, straight from its definition."""
    if not isinstance(choice, str):
        return choice(torch.tensor(row), prompt)
    acts = {
        "all": lambda i: True,
        "prompt": lambda i: i < prompt,
        "generated": lambda i: i >= prompt,
        "answer": lambda i: i >= prompt,
        "last_prompt": lambda i: i == prompt - 1,
        "from_last_prompt": lambda i: i >= prompt - 1,
    }[choice]
    return torch.tensor([acts(i) for i in range(len(row))])


def edited_logits(model: Any, edit: Any, row: Sequence[int], prompt: int, choice: Any, strength: float = 1.5) -> Tensor:
    """Logits of one row in one pass, with the edit applied by TransformerLens's own hooks where the mask says."""
    acts = by_hand(choice, row, prompt)

    def hook_at(layer: int):
        def hook(x: Tensor, hook: Any) -> Tensor:
            out = x.clone()
            out[0, acts] = edit(x, layer, strength)[0, acts]
            return out

        return hook

    lens = Lens.of(model)
    hooks = [(lens.point(edit.site, layer), hook_at(layer)) for layer in LAYERS]
    with torch.no_grad():
        return model.run_with_hooks(torch.tensor([list(row)]), return_type="logits", fwd_hooks=hooks)[0]


def scored_by_hand(model: Any, edit: Any, row: Sequence[int], start: int, choice: Any, strength: float = 1.5) -> float:
    log_p = edited_logits(model, edit, list(row)[:-1], start, choice, strength).double().log_softmax(-1)
    return sum(log_p[i - 1, row[i]].item() for i in range(start, len(row)))


@pytest.fixture
def edit(model):
    return fitted(model)


def where(choice: Any, strength: float = 1.5) -> dict[str, Any]:
    return {"layers": LAYERS, "strength": strength, "positions": choice}


@pytest.mark.parametrize("choice", CHOICES, ids=NAMED)
def test_cached_steps_are_one_pass_with_the_mask(any_model, choice):
    """Prompts of different lengths, padded on the left, then steps of one and two tokens, and rows that stay."""
    edit, lens = fitted(any_model), Lens.of(any_model)
    prompts = [[1, *range(4, 4 + length)] for length in (3, 11, 1, 7)]
    more = torch.arange(20, 32).reshape(4, 3)
    padded, mask = pad(prompts, left=True)
    with edit.applied(any_model, **where(choice)):
        first, past = Past(lens, 4).read(padded, mask)
        second, past = past.read(more[:, :1])
        kept = [2, 0, 3]
        third, _ = past.select(kept).read(more[kept, 1:])
    for row, prompt in enumerate(prompts):
        expected = edited_logits(any_model, edit, [*prompt, *more[row].tolist()], len(prompt), choice)
        n = len(prompt)
        torch.testing.assert_close(first[row, -n:], expected[:n], rtol=0, atol=2e-4)
        torch.testing.assert_close(second[row], expected[n : n + 1], rtol=0, atol=2e-4)
        if row in kept:
            torch.testing.assert_close(third[kept.index(row)], expected[n + 1 :], rtol=0, atol=2e-4)


@pytest.mark.parametrize("choice", CHOICES, ids=NAMED)
def test_generation_is_that_of_whole_passes_with_the_mask(model, edit, choice):
    prompts = [[1, *range(5, 5 + length)] for length in (2, 6, 4)]
    found = sl.generate(model, prompts, edit, **where(choice), max_new_tokens=6, return_tokens=True)
    for prompt, continuation in zip(prompts, found, strict=True):
        row = [*prompt, *continuation]
        chosen = edited_logits(model, edit, row, len(prompt), choice).argmax(-1)
        assert chosen[len(prompt) - 1 : -1].tolist() == continuation


@pytest.mark.parametrize("choice", CHOICES, ids=NAMED)
def test_an_effect_is_that_of_rows_scored_by_hand(model, edit, choice):
    items, lens = contrasts(), Lens.of(model)
    found = sl.effect(model, edit, items, **where(choice), batch_size=4)
    for i, contrast in enumerate(items):
        completions = encode_completions(lens, contrast.prompt, {"target": contrast.target, "foil": contrast.foil})[1]
        scores = [scored_by_hand(model, edit, row, start, choice) for row, start in completions]
        assert found.after_items[i].item() == pytest.approx(scores[0] - scores[1], abs=1e-4)


@pytest.mark.parametrize("choice", CHOICES, ids=NAMED)
def test_shared_prompts_are_scored_as_whole_rows(model, edit, choice):
    """Items that begin alike, prompts of different lengths, answers of one token and several, equal inputs."""
    lens = Lens.of(model)
    common = [1, *range(10, 20)]
    spans, items = [], []
    for item, prompt in enumerate(([21, 22], [21, 22, 23], [24], [21, 22])):
        for answer in ([30], [30, 31, 32], [33, 34]):
            spans.append(Span((*common, *prompt, *answer), len(common) + len(prompt)))
            items.append(item)
    # The same tokens, of which another number is the prompt.
    spans += [Span((1, 5, 6, 7, 8), 2), Span((1, 5, 6, 7, 8), 4), Span((1, 5, 6, 7, 8, 9, 10), 5, 2)]
    items += [4, 5, 6]
    with edit.applied(model, **where(choice)):
        found = log_probs(lens, spans, items, batch_size=4)
    for span, value in zip(spans, found.tolist(), strict=True):
        log_p = edited_logits(model, edit, span.tokens[:-1], span.prompt_length, choice).double().log_softmax(-1)
        expected = sum(log_p[i - 1, span.tokens[i]].item() for i in range(span.start, len(span.tokens)))
        assert value == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("choice", ["answer", "last_prompt", every_third], ids=positions_name)
def test_an_evaluation_is_scored_item_by_item_by_hand(model, edit, choice, tmp_path):
    rows = [
        {
            "query": sentence(70 + i, 3 + i),
            "choices": [" w1", f" {sentence(i, 2)}", f" {sentence(40 + i, 3)}"],
            "gold": 0,
        }
        for i in range(4)
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    found = sl.evaluate(model, "capability", path, prompt="query", edit=edit, **where(choice), progress=False)
    lens = Lens.of(model)
    for row, item in zip(rows, found.items, strict=True):
        completions = encode_completions(lens, row["query"], dict(zip("abc", row["choices"], strict=True)))[1]
        expected = [scored_by_hand(model, edit, *one, choice) for one in completions]
        assert item["log_probs"] == pytest.approx(expected, abs=1e-4)
    assert found.provenance["edit"]["positions"]
    if callable(choice):
        with pytest.raises(sl.InputError, match="journal"):
            sl.evaluate(
                model, "capability", path, edit=edit, **where(choice), journal=tmp_path / "journal", progress=False
            )


def test_in_perplexity_all_but_bos_is_the_answer(model, edit, tmp_path):
    # Longer than the context, so that it is read in parts.
    text = sentence(7, 120)
    path = tmp_path / "text.txt"
    path.write_text(text)

    def perplexity(choice: str) -> float:
        return sl.evaluate(model, "perplexity", path, edit=edit, **where(choice), progress=False).scores["loss"]

    everywhere, answer, prompt = perplexity("all"), perplexity("answer"), perplexity("prompt")
    unedited = sl.evaluate(model, "perplexity", path, progress=False).scores["loss"]
    assert len({round(x, 6) for x in (everywhere, answer, prompt, unedited)}) == 4
    short = tmp_path / "short.txt"
    short.write_text(sentence(7, 9))
    found = sl.evaluate(model, "perplexity", short, edit=edit, **where("answer"), progress=False)
    ids = [1, *Lens.of(model).tokenizer(sentence(7, 9), add_special_tokens=False).input_ids]
    assert found.scores["loss"] == pytest.approx(-scored_by_hand(model, edit, ids, 1, "answer") / 9, abs=1e-4)


@pytest.mark.parametrize(
    ("site", "choice"), [("mlp_out", "answer"), ("mlp_out", every_third), ("z", "answer")], ids=positions_name
)
def test_contributions_close_over_the_positions_where_the_edit_acts(model, site, choice):
    edit, items = fitted(model, site=site), contrasts(4)
    effect = sl.effect(model, edit, items, **where(choice, 1.0)).effect
    by_layer = sl.layer_contributions(model, edit, items, **where(choice, 1.0))
    assert by_layer.effect == pytest.approx(effect, abs=1e-6)
    assert by_layer.closure_error < 2e-3 * abs(effect)
    by_position = sl.position_contributions(model, edit, items, **where(choice, 1.0))
    torch.testing.assert_close(by_position.values.sum(1), by_layer.values, rtol=0, atol=1e-6)
    if choice == "answer":
        assert not by_position.values[:, : by_position.positions.index(0) + 1].any()
    by_direction = sl.direction_contributions(model, edit, items, **where(choice, 1.0))
    assert by_direction.total == pytest.approx(by_layer.total, abs=1e-5)
    assert by_direction.descriptions
    by_game = sl.layer_contributions(model, edit, items, "shapley", **where(choice, 1.0))
    assert by_game.total == pytest.approx(effect, abs=1e-6)
    necessity = sl.head_contributions(model, edit, items, "necessity", **where(choice, 1.0))
    assert necessity.effect == pytest.approx(effect, abs=1e-5)
    if site == "z":
        path = sl.head_contributions(model, edit, items, "path", **where(choice, 1.0))
        torch.testing.assert_close(path.values[LAYERS].sum(1), by_layer.values, rtol=0, atol=1e-6)


def test_a_path_gradient_is_the_slope_of_the_effect(model, edit):
    """A tiny strength: the path's value is the effect to first order, so the gradient has the mask."""
    items, tiny = contrasts(), 1e-3
    for choice in ("last_prompt", "answer", every_third):
        found = sl.layer_contributions(model, edit, items, **where(choice, tiny), tolerance=1.0)
        alone = sl.layer_contributions(model, edit, items, "only_one", **where(choice, tiny))
        torch.testing.assert_close(found.values, alone.values, rtol=0.05, atol=2e-6)


def test_direct_sees_the_last_prompt_position(model, edit):
    items = sl.Contrasts([item for item in contrasts() if item.target.split()[0] != item.foil.split()[0]])
    last = sl.head_contributions(model, edit, items, "direct", **where("last_prompt"))
    prompt = sl.head_contributions(model, edit, items, "direct", **where("from_last_prompt"))
    torch.testing.assert_close(last.values, prompt.values, rtol=0, atol=1e-6)
    assert last.effect != 0
    # What acts behind the prompt changes nothing there.
    assert sl.head_contributions(model, edit, items, "direct", **where("answer")).effect == 0


@contextlib.contextmanager
def ignoring_other_edits():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sl.SeaLensWarning)
        yield


@pytest.mark.parametrize("choice", CHOICES, ids=NAMED)
def test_examples_in_front_belong_to_the_prompt(model, edit, choice):
    shots = sl.in_context(model, demonstrations(), shots=2)
    lens = Lens.of(model)
    examples = lens.tokenizer(shots.prefix, add_special_tokens=False).input_ids
    prompts, more = [[1, 5, 6], [1, *range(7, 13)]], [20, 21]
    padded, mask = pad(prompts, left=True)
    with shots.applied(model), ignoring_other_edits(), edit.applied(model, **where(choice)):
        first, past = Past(lens, 2).read(padded, mask)
        second, _ = past.read(torch.tensor([more, more]))
    n = len(examples)
    for row, prompt in enumerate(prompts):
        whole = [1, *examples, *prompt[1:], *more]
        chosen: Any = choice
        if not isinstance(choice, str):
            # A function sees the caller's tokens alone, and nothing acts at the examples.
            own = choice(torch.tensor([*prompt, *more]), len(prompt))
            acts = torch.cat([own[:1], torch.zeros(n, dtype=torch.bool), own[1:]])
            chosen = lambda ids, length, acts=acts: acts[: len(ids)]  # noqa: E731
        expected = edited_logits(model, edit, whole, n + len(prompt), chosen)
        torch.testing.assert_close(first[row, -len(prompt) + 1 :], expected[n + 1 : n + len(prompt)], rtol=0, atol=2e-4)
        torch.testing.assert_close(second[row], expected[n + len(prompt) :], rtol=0, atol=2e-4)


def methods(model: Any) -> dict[str, Any]:
    covariance = sl.capture(model, demonstrations(), progress=False)
    return {
        "spectral": sl.fit(covariance, rank=(3, 2)),
        "mean_difference": sl.mean_difference(covariance),
        "iti": sl.iti(model, demonstrations(), heads=4, progress=False),
    }


@pytest.mark.parametrize("method", ["spectral", "mean_difference", "iti"])
def test_every_edit_of_activations_acts_at_positions(model, method):
    edit, items = methods(model)[method], contrasts()
    lens = Lens.of(model)
    row, start = encode_completions(lens, items[0].prompt, {"target": items[0].target})[1][0]
    for choice in ("prompt", "from_last_prompt", every_third):
        value = sl.effect(model, edit, items, strength=2.0, positions=choice).after_items
        with edit.applied(model, strength=2.0, positions=choice), sl.prompt_lengths(model, start):
            logits = model(torch.tensor([row[:-1]]), return_type="logits")[0]
        acts = by_hand(choice, row[:-1], start)

        def hook_at(layer: int, acts: Tensor = acts):
            return lambda x, hook: torch.where(acts[(None, ..., *[None] * (x.ndim - 2))], edit(x, layer, 2.0), x)

        hooks = [(lens.point(edit.site, layer), hook_at(layer)) for layer in edit.layers]
        expected = model.run_with_hooks(torch.tensor([row[:-1]]), return_type="logits", fwd_hooks=hooks)[0]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
        assert torch.isfinite(value).all()


def test_leace_acts_at_positions(model):
    pytest.importorskip("concept_erasure")
    edit = sl.leace(model, demonstrations(24), shrinkage=True, progress=False)
    ids = tokens(2, 9)
    with edit.applied(model, positions="answer"), sl.prompt_lengths(model, [4, 9]):
        found = model(ids, return_type="logits")
    plain = model(ids, return_type="logits")
    assert torch.equal(found[0, :4], plain[0, :4])
    assert not torch.equal(found[0, 4:], plain[0, 4:])
    torch.testing.assert_close(found[1], plain[1], rtol=0, atol=1e-5)


def test_what_acts_on_no_single_token_is_refused_elsewhere_than_everywhere(model):
    for other in (sl.in_context(model, demonstrations(), shots=1), sl.dola(model, relative_top=0)):
        other.check(model, positions="all")
        for choice in ("answer", every_third):
            with pytest.raises(sl.InputError, match="expected positions 'all'"):
                other.check(model, positions=choice)
            with pytest.raises(sl.InputError, match="expected positions 'all'"):
                other.with_defaults(positions=choice)


@pytest.mark.parametrize("choice", ["first", "", "ALL"])
def test_other_choices_are_refused(model, edit, choice):
    with pytest.raises(sl.InputError, match="expected one of all, prompt, generated"):
        sl.effect(model, edit, contrasts(), positions=choice)
    with pytest.raises(sl.InputError, match="expected one of all, prompt, generated"):
        sl.generate(model, "w1", positions=choice, edit=edit)


def test_a_function_is_asked_for_one_truth_a_token_and_for_earlier_tokens_alone(model, edit):
    wrong: dict[str, Any] = {
        "shape": lambda ids, prompt: torch.ones(len(ids) + 1, dtype=torch.bool),
        "dtype": lambda ids, prompt: torch.ones(len(ids)),
        "scalar": lambda ids, prompt: True,
    }
    for choice in wrong.values():
        with pytest.raises(sl.InputError, match="expected one True or False for each"):
            sl.effect(model, edit, contrasts(), positions=choice)
    backwards = lambda ids, prompt: torch.arange(len(ids)) == len(ids) - 1  # noqa: E731
    with pytest.raises(sl.InputError, match="earlier tokens alone"):
        sl.generate(model, "w1 w2", edit, positions=backwards, max_new_tokens=3)
    # In whole rows it may look at all of them.
    assert sl.effect(model, edit, contrasts(), positions=backwards).effect != 0
    # Lists of truth values are welcome too.
    listed = sl.effect(model, edit, contrasts(), positions=lambda ids, prompt: [i >= prompt for i in range(len(ids))])
    assert torch.equal(listed.after_items, sl.effect(model, edit, contrasts(), positions="answer").after_items)


def test_a_pass_of_ones_own_is_all_prompt_until_a_cache_is_filled(model, edit):
    ids = tokens(2, 8)
    plain = model(ids, return_type="logits")
    for choice, same in (("answer", plain), ("generated", plain)):
        with edit.applied(model, positions=choice):
            torch.testing.assert_close(model(ids, return_type="logits"), same, rtol=0, atol=0)
    with edit.applied(model, positions="prompt"):
        everywhere = model(ids, return_type="logits")
    with edit.applied(model):
        torch.testing.assert_close(model(ids, return_type="logits"), everywhere, rtol=0, atol=0)
    with edit.applied(model, positions="last_prompt"):
        last = model(ids, return_type="logits")
    assert torch.equal(last[:, :-1], plain[:, :-1])
    assert not torch.equal(last[:, -1], plain[:, -1])


@pytest.mark.parametrize("choice", ["generated", "last_prompt", "prompt"])
def test_transformerlenss_own_generate_acts_where_sea_lens_does(model, edit, choice):
    from sea_lens.models.cache_probe import mend_own_cache

    mend_own_cache(Lens.of(model))
    ids = tokens(1, 6)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "stop_at_eos": False, "verbose": False}
    with edit.applied(model, **where(choice, 3.0)):
        own = model.generate(ids, **options)
    row = own[0].tolist()
    chosen = edited_logits(model, edit, row, 6, choice, 3.0).argmax(-1)
    assert chosen[5:-1].tolist() == row[6:]


def test_hooks_of_the_users_own_act_at_positions_where_prompts_are_told(model, edit):
    ids = tokens(2, 8)
    hooks = edit.fwd_hooks(model, **where("answer"))
    with pytest.raises(sl.InputError, match="prompt_lengths"):
        model.run_with_hooks(ids, fwd_hooks=hooks)
    with sl.prompt_lengths(model, [3, 5]):
        found = model.run_with_hooks(ids, return_type="logits", fwd_hooks=hooks)
    for row, prompt in enumerate((3, 5)):
        expected = edited_logits(model, edit, ids[row].tolist(), prompt, "answer")
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-4)
    with sl.prompt_lengths(model, [3, 5]), pytest.raises(sl.InputError, match="2 prompts"):
        model.run_with_hooks(tokens(3, 8), fwd_hooks=hooks)
    assert not Lens.of(model).observer.standing
    # Everywhere, they ask for nothing.
    model.run_with_hooks(ids, fwd_hooks=edit.fwd_hooks(model, layers=LAYERS))


def test_new_fits_of_steering_leave_the_prompt_alone_and_say_so(model, tmp_path):
    found = methods(model)
    items = contrasts()
    for name in ("mean_difference", "iti"):
        edit = found[name]
        assert edit.defaults.positions == "from_last_prompt"
        default = sl.effect(model, edit, items).after_items
        assert torch.equal(default, sl.effect(model, edit, items, positions="from_last_prompt").after_items)
        everywhere = sl.effect(model, edit, items, positions="all").after_items
        assert not torch.allclose(default, everywhere, atol=1e-5)
        edit.save(tmp_path / name)
        loaded = sl.load_edit(tmp_path / name)
        assert loaded.defaults == edit.defaults
        assert torch.equal(sl.effect(model, loaded, items).after_items, default)
        ids = tokens(1, 7)
        plain = model(ids, return_type="logits")
        with edit.applied(model):
            found_logits = model(ids, return_type="logits")
        assert torch.equal(found_logits[:, :-1], plain[:, :-1])
        assert not torch.equal(found_logits[:, -1], plain[:, -1])
    assert found["spectral"].defaults.positions is None


def test_an_edit_remembers_what_was_chosen_for_it(model, edit, tmp_path):
    items = contrasts()
    chosen = edit.with_defaults(layers="last-2", strength=1.5, combine="average", positions="prompt")
    given: dict[str, Any] = {"layers": "last-2", "strength": 1.5, "combine": "average", "positions": "prompt"}
    wanted = sl.effect(model, edit, items, **given)
    assert torch.equal(sl.effect(model, chosen, items).after_items, wanted.after_items)
    assert edit.defaults == type(edit.defaults)()
    # What is given wins, and what was not chosen stays as it was.
    assert chosen.settled(strength=0.5, positions="all") == given | {"strength": 0.5, "positions": "all"}
    assert chosen.with_defaults(strength=2.0).settled() == given | {"strength": 2.0}
    chosen.save(tmp_path / "edit")
    loaded = sl.load_edit(tmp_path / "edit")
    assert loaded.settled() == given
    assert torch.equal(sl.effect(model, loaded, items).after_items, wanted.after_items)
    assert sl.randomised(chosen, seed=0).settled() == given
    assert [one.settled() for one in sl.permuted(model, chosen, demonstrations(), draws=1)] == [given]
    assert sl.generate(model, "w1 w2", chosen) == sl.generate(model, "w1 w2", edit, **given)
    found = sl.layer_contributions(model, chosen, items, "only_one")
    assert torch.equal(found.values, sl.layer_contributions(model, edit, items, "only_one", **given).values)
    per_layer = edit.with_defaults(layers=[0, 2], strength={0: 1.0, 2: -0.5})
    per_layer.save(tmp_path / "per_layer")
    assert sl.load_edit(tmp_path / "per_layer").settled()["strength"] == {0: 1.0, 2: -0.5}


def test_defaults_that_no_call_would_take_are_refused(model, edit, tmp_path):
    wrong: list[dict[str, Any]] = [
        {"layers": "last-9"},
        {"layers": [7]},
        {"strength": float("nan")},
        {"strength": torch.ones(3)},
        {"combine": "add"},
        {"positions": "first"},
    ]
    for one in wrong:
        with pytest.raises(sl.InputError):
            edit.with_defaults(**one)
    with pytest.raises(sl.InputError, match="every_third"):
        edit.with_defaults(positions=every_third).save(tmp_path / "edit")


def test_the_same_edit_without_defaults_writes_the_same_file_as_before(edit, tmp_path):
    edit.save(tmp_path / "edit")
    assert "defaults" not in sl.SpectralEdit.header(tmp_path / "edit")


def test_all_positions_cost_nothing_more(model, edit):
    """The functions that are put in are the same ones; no mask is ever made."""
    lens = Lens.of(model)
    with edit.applied(model):
        seen = []
        with lens.hooks([(lens.point("mlp_out", 0), lambda x: seen.append(lens.current_pass))]):
            model(tokens(1, 5))
    assert seen[0].acting == {}


def test_what_an_interrupt_left_of_prompts_is_forgotten_when_something_is_put_in(model, edit):
    lens, ids = Lens.of(model), tokens(3, 7)
    with edit.applied(model, positions="last_prompt"):
        expected = model(ids, return_type="logits")
    lens.told = Told((2,))
    with edit.applied(model, positions="last_prompt"):
        assert torch.equal(model(ids, return_type="logits"), expected)
    assert lens.told is None


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_of_rows_without_a_mask_is_no_text(model, edit, side):
    model.tokenizer.padding_side = side
    try:
        padded = model.to_tokens(["w1 w2 w3 w4", "w5"])
        with edit.applied(model, positions="last_prompt"):
            rows = model(padded), model(["w1 w2 w3 w4", "w5"])
            alone = model(model.to_tokens("w5"))[0, -1]
    finally:
        model.tokenizer.padding_side = "right"
    # A bridge attends to padding on the left of tokens, whatever edit is in it.
    for logits in rows if side == "right" or Lens.of(model).backend == "hooked" else rows[1:]:
        torch.testing.assert_close(logits[1, 1 if side == "right" else -1], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("gives", [None, "all", object()])
def test_a_function_that_gives_no_tensor_is_refused(model, edit, gives):
    with edit.applied(model, positions=lambda tokens, prompt: gives), pytest.raises(sl.InputError, match="gave"):
        model(tokens())
