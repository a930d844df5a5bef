"""The released code's two differences that no option has: formulas by hand, and what they do to the edit's promises."""

from pathlib import Path

import numpy as np
import pytest
import torch

import sea_lens as sl
from sea_lens.errors import InputError
from sea_lens.evaluation.benchmark import Item
from sea_lens.measure.scorer import contrast_scorer
from sea_lens.paper.judged import JudgedAnswers, ModelJudge, ReferenceJudge
from sea_lens.paper.released import NormOverTokens, without_feature

TEXTS = ("Q: what is the river of Delkeld ? A:", "Q: what is the river of Delkeld ? A: Selwyn . Q:")
SITE, LAYER = "resid_post", 1


@pytest.fixture(scope="module")
def bed():
    return sl.testbed.load()


@pytest.fixture(scope="module")
def edit(bed):
    return sl.fit(sl.capture(bed.model, bed.demonstrations[:64], site=SITE, batch_size=64, progress=False), rank=6)


def stream(bed, tokens, edit=None, **where):
    """The stream behind a layer, edited or not, without padding."""
    if edit is None:
        return bed.model.run_with_cache(tokens)[1][f"blocks.{LAYER}.hook_{SITE}"]
    with edit.applied(bed.model, layers=[LAYER], **where):
        return bed.model.run_with_cache(tokens)[1][f"blocks.{LAYER}.hook_{SITE}"]


@pytest.mark.model
def test_every_coordinate_keeps_its_norm_over_tokens(bed, edit):
    tokens = bed.model.to_tokens(TEXTS[1], prepend_bos=True)
    plain, edited = stream(bed, tokens)[0], stream(bed, tokens, NormOverTokens.of(edit))[0]
    torch.testing.assert_close(edited.norm(dim=0), plain.norm(dim=0), rtol=1e-4, atol=1e-5)
    keep, drop = (one.float() for one in edit.projections(LAYER))
    y = plain @ keep + plain @ drop
    expected = y * (plain.norm(dim=0) / y.norm(dim=0))
    torch.testing.assert_close(edited, expected, rtol=1e-3, atol=1e-4)
    # Not what the paper says, which keeps the norm of every token.
    assert not torch.allclose(edited.norm(dim=1), plain.norm(dim=1), rtol=1e-2)


@pytest.mark.model
def test_a_later_token_changes_an_earlier_ones_edit_and_another_row_does_not(bed, edit):
    short, long = (bed.model.to_tokens(text, prepend_bos=True) for text in TEXTS)
    released, n = NormOverTokens.of(edit), short.shape[1]
    alone, with_more = stream(bed, short, released), stream(bed, long, released)
    assert (alone - with_more[:, :n]).abs().max() > 1e-3
    torch.testing.assert_close(stream(bed, short, edit), stream(bed, long, edit)[:, :n], rtol=1e-4, atol=1e-5)
    contrasts = sl.Contrasts(sl.Contrast(text, " Selwyn", " Mirev") for text in TEXTS)
    for one in (released, edit):
        with one.applied(bed.model, strength=1.5):
            together = contrast_scorer(bed.model, contrasts, batch_size=4).log_probs()
            single = contrast_scorer(bed.model, contrasts, batch_size=1).log_probs()
        torch.testing.assert_close(together, single, rtol=0, atol=1e-5)


@pytest.mark.model
def test_benchmarks_read_whole_rows_under_it(bed, edit):
    """A prompt that is read once for all of its answers would have other norms."""
    rows = [{"query": TEXTS[0], "choices": ["Mirev", "Selwyn"], "gold": 0}]
    benchmark = sl.Task.read("capability", _written(rows), prompt="query")
    found = sl.evaluate(bed.model, benchmark, edit=NormOverTokens.of(edit), progress=False)
    contrasts = sl.Contrasts([sl.Contrast(TEXTS[0], " Mirev", " Selwyn")])
    with NormOverTokens.of(edit).applied(bed.model):
        expected = contrast_scorer(bed.model, contrasts).log_probs()
    assert found.items[0]["log_probs"] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.model
def test_strength_zero_is_no_edit_and_heads_are_refused(bed, edit):
    tokens = bed.model.to_tokens(TEXTS[0], prepend_bos=True)
    torch.testing.assert_close(
        stream(bed, tokens, NormOverTokens.of(edit), strength=0.0), stream(bed, tokens), rtol=0, atol=1e-6
    )
    heads = sl.fit(sl.capture(bed.model, bed.demonstrations[:16], site="z", progress=False), rank=2)
    with pytest.raises(InputError, match="heads"):
        NormOverTokens.of(heads)


@pytest.mark.model
def test_a_map_that_is_thrown_away_leaves_its_inverse(bed):
    read = sl.capture(bed.model, bed.demonstrations[:64], feature="squared_exponential", progress=False)
    edit = sl.fit(read, rank=6)
    x = torch.linspace(0.05, 0.9, 128)[None]
    keep, drop = (one.float() for one in edit.projections(LAYER))
    low, high = edit.feature.bounds

    def inverse(y):
        return -2 * y.clamp(low, high).log()

    y = inverse(x @ keep) + inverse(x @ drop)
    expected = y * x.norm() / y.norm()
    torch.testing.assert_close(without_feature(edit)(x, LAYER), expected, rtol=1e-4, atol=1e-4)
    assert (without_feature(edit)(x, LAYER) - edit(x, LAYER)).abs().max() > 0.1


_ITEM = Item(1, {"question": TEXTS[0]}, ("Mirev", "Selwyn"), {"true": [0], "false": [1], "best": [0], "against": [1]})


class Fixed:
    """A judge that likes one answer."""

    def rate(self, items, answers):
        return np.array([float(answer.strip() == "Mirev") for answer in answers]), np.ones(len(answers))


def test_a_known_answer_is_truthful_and_a_word_is_informative():
    truth, info = ReferenceJudge().rate([_ITEM] * 3, [" Mirev", " Selwyn", " "])
    assert truth.tolist() == [1, 0, 0]
    assert info.tolist() == [1, 1, 0]


@pytest.mark.model
def test_a_models_judgement_is_its_probability_of_yes_beside_no(model):
    truth, info = ModelJudge(lambda: (model, model)).rate([_ITEM], [" Mirev"])
    for found, asked in ((truth, "True"), (info, "Helpful")):
        texts = [f"Q: {_ITEM.fields['question']}\nA: Mirev\n{asked}:{answer}" for answer in (" yes", " no")]
        prompt = texts[0].removesuffix(" yes")
        scored = []
        for text in texts:
            whole, before = (model.to_tokens(one, prepend_bos=True)[0] for one in (text, prompt))
            logs = model(whole[None])[0].log_softmax(-1)
            scored.append(sum(logs[i - 1, whole[i]].item() for i in range(len(before), len(whole))))
        assert found[0] == pytest.approx(1 / (1 + np.exp(scored[1] - scored[0])), abs=1e-4)


@pytest.mark.model
def test_the_best_of_several_is_what_the_judge_likes(bed):
    task = sl.Task.read(
        "truthfulqa", _written([_truthful(bed.world.split("dev")[i]) for i in range(12)]), prompt=_PROMPT
    )
    one, several = (
        sl.evaluate(bed.model, sl.Task(JudgedAnswers(judge, n, longest=1), task.source, task.items, task.template))
        for judge, n in ((ReferenceJudge(), 1), (ReferenceJudge(), 8))
    )
    greedy = sl.generate(bed.model, [item.fields["question"] for item in task.items], max_new_tokens=1)
    assert [row["generated"] for row in one.items] == greedy
    right = [text.strip() == item.answers[0] for text, item in zip(greedy, task.items, strict=True)]
    assert one.scores["truth"] == pytest.approx(np.mean(right))
    assert several.scores["truth_and_info"] >= one.scores["truth_and_info"]
    liked = sl.evaluate(bed.model, sl.Task(JudgedAnswers(Fixed(), 8, 1), task.source, task.items, task.template))
    for row in liked.items:
        assert row["truth"] == float(row["generated"].strip() == "Mirev")


_PROMPT = sl.PromptTemplate("as it stands", "{question}", stop=(" .",))


def _truthful(question):
    targets = {question.truth: 1, **dict.fromkeys(question.answers[1:], 0)}
    return {"question": question.prompt(), "mc1_targets": targets, "mc2_targets": targets}


def _written(rows):
    import json
    import tempfile

    path = Path(tempfile.mkdtemp()) / "rows.json"
    path.write_text(json.dumps(rows))
    return path
