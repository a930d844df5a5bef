import json
from typing import Any

import pytest
import torch
from tiny import N_LAYERS, contrasts, demonstrations, fitted, sentence, tokens

import sea_lens as sl
from sea_lens.measure.shared_prompts import log_probs
from sea_lens.measure.spans import completion_spans
from sea_lens.models.cache import Past
from sea_lens.models.lens import Lens
from sea_lens.models.tokens import bos_token, pad, tokenise

pytestmark = pytest.mark.model


def logits(model, ids, mask=None):
    return Lens.of(model).forward(ids, torch.ones_like(ids) if mask is None else mask).detach()


def rows(lengths):
    """A row of tokens of each length, BOS in front."""
    return [tokens(1, n, seed=n)[0].tolist() for n in lengths]


def prefixed(model, edit, row):
    """A row with the examples behind its BOS, by hand."""
    examples = tokenise(Lens.of(model), edit.prefix, prepend_bos=False)
    n_bos = int(row[0] == bos_token(Lens.of(model)))
    return [*row[:n_bos], *examples, *row[n_bos:]], len(examples)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("left", [False, True])
def test_logits_are_those_behind_the_examples(any_model, left):
    edit = sl.in_context(any_model, demonstrations(), 2, " ")
    some = rows((3, 7, 5))
    ids, mask = pad(some, left=left)
    with edit.applied(any_model), torch.no_grad():
        # Only a model that is told of padding on the left can be right about it.
        found, _ = Past(Lens.of(any_model), 3).read(ids, mask)
        assert found.shape[:2] == ids.shape
    for row, one, kept in zip(some, found, mask.bool(), strict=True):
        whole, n = prefixed(any_model, edit, row)
        close(one[kept], logits(any_model, torch.tensor([whole]))[0, n:])


def test_without_bos_the_examples_come_first(any_model):
    edit = sl.in_context(any_model, demonstrations(), 1, " ")
    ids = tokens(2, 7)[:, 1:]
    examples = torch.tensor([tokenise(Lens.of(any_model), edit.prefix, prepend_bos=False)] * 2)
    with edit.applied(any_model):
        found = logits(any_model, ids)
    close(found, logits(any_model, torch.cat([examples, ids], 1))[:, examples.shape[1] :])


def test_cached_steps_are_one_pass(any_model):
    edit, lens = sl.in_context(any_model, demonstrations(), 2, " "), Lens.of(any_model)
    ids, mask = pad(rows((4, 9)), left=True)
    with edit.applied(any_model), torch.no_grad():
        whole, _ = Past(lens, 2).read(ids, mask)
        first, past = Past(lens, 2).read(ids[:, :-3], mask[:, :-3])
        swapped = past.select([1, 0])
        second, _ = swapped.read(ids[[1, 0], -3:])
    close(torch.cat([first, second[[1, 0]]], 1)[mask.bool()], whole[mask.bool()])


def test_generation_is_that_after_the_examples(any_model):
    edit = sl.in_context(any_model, demonstrations(), 2, " ")
    prompts = [sentence(0, 3), sentence(1, 6)]
    assert sl.generate(any_model, prompts, edit, max_new_tokens=4) == sl.generate(
        any_model, [edit.prefix + prompt for prompt in prompts], max_new_tokens=4
    )
    ids, options = tokens(1, 4, seed=4), {"max_new_tokens": 4, "do_sample": False, "return_type": "tokens"}
    with edit.applied(any_model):
        if Lens.of(any_model).backend == "hooked":
            with pytest.raises(sl.InputError, match="got embeddings"):
                any_model.generate(ids, stop_at_eos=False, verbose=False, **options)
            return
        own = any_model.generate(ids, stop_at_eos=False, verbose=False, **options)
    whole = torch.tensor([prefixed(any_model, edit, ids[0].tolist())[0]])
    for _ in range(4):
        whole = torch.cat([whole, logits(any_model, whole)[:, -1:].argmax(-1)], 1)
    assert own[0, -4:].tolist() == whole[0, -4:].tolist()


def test_it_is_measured_like_any_edit(model):
    edit = sl.in_context(model, demonstrations(), 3, " ")
    by_hand = sl.Contrasts(sl.Contrast(edit.prefix + c.prompt, c.target, c.foil) for c in contrasts())
    effect = sl.effect(model, edit, contrasts())
    close(effect.after_items, sl.effect(model, fitted(model), by_hand).before_items)
    assert effect.effect != 0
    lens = Lens.of(model)
    items = [(c.prompt, [c.target, c.foil]) for c in contrasts()]

    def scores(pairs):
        spans = [fit.spans[0] for prompt, answers in pairs for fit in completion_spans(lens, prompt, answers)]
        return log_probs(lens, spans, [i // 2 for i in range(len(spans))])

    with edit.applied(model):
        found = scores(items)
    close(found, scores([(edit.prefix + prompt, answers) for prompt, answers in items]))


@pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")
def test_activations_are_read_at_the_texts_own_positions(model):
    edit = sl.in_context(model, demonstrations(), 2, " ")
    front = sl.Demonstrations(
        sl.Demonstration(*(edit.prefix + text for text in (d.neutral, d.positive, d.negative)))
        for d in demonstrations()
    )
    by_hand = sl.capture(model, front, progress=False)
    with edit.applied(model):
        found = sl.capture(model, demonstrations(), progress=False)
    for one, wanted in zip(found.means(1), by_hand.means(1), strict=True):
        close(one, wanted)


@pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")
def test_it_stands_with_other_edits_and_leaves_in_any_order(any_model):
    ids = torch.tensor(rows((7, 7)))
    before, n_ctx = logits(any_model, ids), Lens.of(any_model).n_ctx
    examples = sl.in_context(any_model, demonstrations(), 1, " ")
    contrast, spectral = sl.dola(any_model, relative_top=0), fitted(any_model)
    with contrast.applied(any_model), spectral.applied(any_model):
        longer = torch.tensor([prefixed(any_model, examples, row)[0] for row in ids.tolist()])
        wanted = logits(any_model, longer)[:, -ids.shape[1] :]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        installed = [edit.install(any_model) for edit in (examples, contrast, spectral)]
        close(logits(any_model, ids), wanted)
        assert Lens.of(any_model).n_ctx < n_ctx
        for which in order:
            installed[which].remove()
            installed[which].remove()
        assert torch.equal(logits(any_model, ids), before)
        assert Lens.of(any_model).n_ctx == n_ctx
        assert "forward" not in vars(any_model)

    def fail():
        with examples.applied(any_model):
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert torch.equal(logits(any_model, ids), before)
    with examples.applied(any_model, strength=0):
        assert torch.equal(logits(any_model, ids), before)


@pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")
def test_the_context_is_shorter_by_the_examples(model):
    edit, lens = sl.in_context(model, demonstrations(), 2, " "), Lens.of(model)
    room = lens.n_ctx - prefixed(model, edit, [0])[1]
    text = sentence(0, 200)
    with edit.applied(model):
        assert lens.n_ctx == room
        with pytest.raises(sl.DemonstrationError, match=f"the model's context holds {room}"):
            sl.effect(model, fitted(model), [sl.Contrast(text, " a", " b")])


@pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")
def test_it_refuses_what_it_cannot_do(model):
    edit = sl.in_context(model, demonstrations(), 2, " ")
    wrong: list[dict[str, Any]] = [
        {"layers": [0]},
        {"strength": 0.5},
        {"strength": {0: 1, 1: 0, 2: 1}},
        {"strength": torch.ones(2) / 2},
    ]
    for where in wrong:
        with pytest.raises(sl.InputError, match="expected strength 1 in all layers, or strength 0"):
            edit.install(model, **where)
    with pytest.raises(sl.InputError, match="in front of the whole model"):
        sl.layer_contributions(model, edit, contrasts(), "shapley")
    for analysis in (sl.layer_contributions, sl.position_contributions, sl.head_contributions):
        with pytest.raises(sl.InputError, match="needs an edit of activations, got InContext"):
            analysis(model, edit, contrasts())
    with pytest.raises(sl.InputError, match="99 examples need as many demonstrations, got 12"):
        sl.in_context(model, demonstrations(), 99)
    with pytest.raises(sl.InputError, match=r"the context of .* holds"):
        sl.in_context(model, demonstrations(), 12, " ".join(["word"] * 100))
    with pytest.raises(sl.MismatchError, match="a model of 5 layers"):
        sl.InContext("some ", 5).install(model)
    with edit.applied(model):
        for analysis in (sl.layer_contributions, sl.position_contributions, sl.head_contributions):
            with pytest.raises(sl.InputError, match="expected a model without examples in front"):
                analysis(model, fitted(model), contrasts())
        # Two prefixes of 10 and 4 leave room for 34 tokens.
        with sl.in_context(model, demonstrations(), 1, " ").applied(model):
            assert Lens.of(model).n_ctx == 34
            assert model(tokens(1, 34)).shape[1] == 34
            assert model(tokens(1, 34)[0]).shape[1] == 34
        with pytest.raises(sl.InputError, match=r"tokens behind 10 of examples: the context of .* holds 48"):
            model(tokens(1, 40))
        with pytest.raises(sl.InputError, match="return_type 'loss' is computed from the prefix too"):
            model(tokens(), return_type="loss")
        assert model(tokens(), stop_at_layer=1).shape == (2, 9, 32)
        if Lens.of(model).backend == "bridge":
            with pytest.raises(sl.InputError, match="not the Hugging Face model inside"):
                model.hf_generate(tokens(1, 6), max_new_tokens=2)
    assert edit.layers == tuple(range(N_LAYERS))


def test_benchmarks_make_room_for_the_examples(model, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(f'{{"text": "{sentence(seed, 40)}"}}\n' for seed in range(3)))
    edit = sl.in_context(model, demonstrations(), 2, " ")
    found = sl.evaluate(model, "perplexity", path, edit=edit, progress=False)
    assert found.to_frame()["tokens"].tolist() == [40] * 3
    assert found.scores["kl"] > 0
    rows = [
        {
            "question": sentence(i, 38),
            "mc1_targets": {f"w{i}": 1, f"w{i + 9}": 0},
            "mc2_targets": {f"w{i}": 1, "w30": 0},
        }
        for i in range(3)
    ]
    (tmp_path / "mc_task.json").write_text(json.dumps(rows))
    options = {"prompt": "qa", "progress": False}
    alone = sl.evaluate(model, "truthfulqa", tmp_path / "mc_task.json", **options)
    behind = sl.evaluate(model, "truthfulqa", tmp_path / "mc_task.json", edit=edit, **options)
    assert alone.to_frame()["cut_tokens"].sum() == 0
    assert (behind.to_frame()["cut_tokens"] > 0).all()


def test_a_solution_is_generated_in_what_room_the_examples_leave(model, tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps({"question": sentence(5, 30), "answer": "#### 3"}) + "\n")
    edit = sl.in_context(model, demonstrations(), 5, " ")
    assert Lens.of(model).n_ctx // 2 < len(tokenise(Lens.of(model), edit.prefix, prepend_bos=False))
    found = sl.evaluate(model, "gsm8k", path, edit=edit, progress=False)
    assert found.to_frame()["cut_tokens"].item() > 0
