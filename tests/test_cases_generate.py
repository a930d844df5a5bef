"""Continuations: sampling, stop texts, batches, and prompts as token ids (docs/method.md 6.10)."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny import N_CTX, VOCABULARY, fitted, sentence, tokens
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

import sea_lens as sl
from sea_lens.edits.base import as_edit
from sea_lens.models.decoding import decode_continuation
from sea_lens.models.lens import Lens
from sea_lens.models.sampling import Sampling

pytestmark = pytest.mark.model
PROMPTS = [sentence(i, 2 + 3 * i) for i in range(4)]


@pytest.fixture
def stories(shared, backend):
    folder = shared / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("needs the model stories260K")
    return sl.load_model(str(folder), backend, device="cpu")


def test_greedy_continuations_are_those_of_transformers_own_generate(model, model_folders):
    original: Any = AutoModelForCausalLM.from_pretrained(model_folders["llama"])
    lens = Lens.of(model)
    prompts = [lens.tokenizer(text, add_special_tokens=False).input_ids for text in PROMPTS]
    found = sl.generate(model, prompts, max_new_tokens=8, return_tokens=True)
    for prompt, continuation in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        whole = original.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        expected = whole[0, len(prompt) :].tolist()
        assert continuation == (expected[: expected.index(2)] if 2 in expected else expected)


def test_prompts_may_be_texts_or_token_ids(model):
    lens = Lens.of(model)
    bos = [1]
    ids = [bos + lens.tokenizer(text, add_special_tokens=False).input_ids for text in PROMPTS]
    wanted = sl.generate(model, PROMPTS, max_new_tokens=5)
    assert sl.generate(model, ids, max_new_tokens=5) == wanted
    assert sl.generate(model, [torch.tensor(one) for one in ids], max_new_tokens=5) == wanted
    for given in (ids[1], torch.tensor(ids[1]), torch.tensor([ids[1]]), torch.tensor(ids[1]).numpy(), PROMPTS[1]):
        assert sl.generate(model, given, max_new_tokens=5) == wanted[1:2]
    batch = tokens(3, 6)
    assert sl.generate(model, batch, max_new_tokens=5) == sl.generate(model, batch.tolist(), max_new_tokens=5)
    assert sl.generate(model, [], max_new_tokens=5) == []


@pytest.mark.parametrize(
    "given",
    [
        None,
        7.5,
        torch.zeros(1, 2, 3, dtype=torch.int64),
        torch.zeros(3),
        torch.ones(3, dtype=torch.bool),
        [1.5, 2.5],
        [[1, 2.5]],
        [[1], "w1"],
        ["w1", 3],
        [[1, VOCABULARY]],
        [[1, -1]],
        [[]],
        torch.zeros(0, dtype=torch.int64),
        [None],
        {"input_ids": [1, 2]},
        b"w1",
        np.array([1.0, 2.0]),
        torch.zeros(3, dtype=torch.int64, device="meta"),
        torch.ones(3, dtype=torch.int64).to_sparse(),
        "",
        [[1] * (N_CTX + 1)],
        [[1] * (N_CTX - 2)],
    ],
    ids=lambda given: repr(given)[:30],
)
def test_other_prompts_are_refused_in_a_sentence(load_tiny, given: Any):
    with pytest.raises((sl.InputError, sl.DemonstrationError), match="prompt"):
        sl.generate(load_tiny(), given, prepend_bos=False, max_new_tokens=5)


@pytest.mark.parametrize("given", [np.array(["w1 w2", "w3"]), np.array(["w1 w2", "w3"], dtype=object)], ids=str)
def test_arrays_of_texts_and_of_any_strides_are_prompts(load_tiny, given):
    model = load_tiny()
    assert sl.generate(model, given, max_new_tokens=3) == sl.generate(model, ["w1 w2", "w3"], max_new_tokens=3)
    backwards = np.array([7, 6, 1])[::-1]
    assert sl.generate(model, backwards, max_new_tokens=3) == sl.generate(model, [1, 6, 7], max_new_tokens=3)


@pytest.mark.parametrize("given", ["edit.safetensors", 3, None], ids=repr)
def test_what_is_no_edit_is_refused_by_name(given: Any):
    with pytest.raises(sl.InputError, match="expected an edit"):
        as_edit(given)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": 1.0, "top_p": 0.0},
        {"temperature": 1.0, "top_p": 1.5},
        {"temperature": 1.0, "top_k": 0},
        {"top_p": 0.9},
        {"top_k": 4},
        {"stop": ""},
        {"stop": ["w1", ""]},
        {"stop": 3},
    ],
    ids=repr,
)
def test_options_out_of_range_are_refused(load_tiny, options: Any):
    with pytest.raises(sl.InputError):
        sl.generate(load_tiny(), "w1 w2", **options)


def test_a_prompt_is_continued_alike_in_any_company(any_model):
    options: dict[str, Any] = {"max_new_tokens": 7, "temperature": 1.0, "top_p": 0.9, "seed": 3}
    together = sl.generate(any_model, PROMPTS, **options)
    assert sl.generate(any_model, PROMPTS[::-1], **options) == together[::-1]
    assert sl.generate(any_model, PROMPTS, batch_size=2, **options) == together
    assert [sl.generate(any_model, prompt, **options)[0] for prompt in PROMPTS] == together


def test_a_prompt_given_twice_is_continued_in_two_ways_and_other_seeds_in_others(model):
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0}
    twice = sl.generate(model, [PROMPTS[0]] * 3, **options)
    assert len(set(twice)) == 3
    assert sl.generate(model, PROMPTS[0], **options) == twice[:1]
    assert sl.generate(model, PROMPTS[0], seed=1, **options) != twice[:1]


def test_drawn_tokens_have_the_probabilities_that_transformers_warpers_leave():
    logits = 2 * torch.randn(1, 40, generator=torch.Generator().manual_seed(0))
    draws = 20_000
    cases: list[tuple[dict[str, Any], list[Any]]] = [
        ({"temperature": 1.0}, []),
        ({"temperature": 0.7, "top_k": 5}, [TopKLogitsWarper(5)]),
        ({"temperature": 1.3, "top_p": 0.6}, [TopPLogitsWarper(0.6)]),
        ({"temperature": 1.3, "top_k": 9, "top_p": 0.8}, [TopKLogitsWarper(9), TopPLogitsWarper(0.8)]),
    ]
    for options, warpers in cases:
        scores = logits / options["temperature"]
        for warper in warpers:
            scores = warper(torch.zeros(1, 1, dtype=torch.int64), scores)
        expected = scores.softmax(-1)[0].double()
        sampling = Sampling(**options)
        generators = sampling.generators([[0]] * draws)
        found = torch.bincount(torch.tensor(sampling.choose(logits.expand(draws, -1), generators)), minlength=40)
        assert not found[expected == 0].any()
        # Five standard deviations of each count.
        error = (found / draws - expected).abs()
        assert (error <= 5 * (expected * (1 - expected) / draws).sqrt() + 1e-9).all()


def test_a_tiny_temperature_or_a_single_token_is_the_most_probable_one(model):
    greedy = sl.generate(model, PROMPTS, max_new_tokens=6)
    assert sl.generate(model, PROMPTS, max_new_tokens=6, temperature=1e-300) == greedy
    assert sl.generate(model, PROMPTS, max_new_tokens=6, temperature=5.0, top_k=1) == greedy


def test_a_stop_text_of_any_number_of_tokens_ends_a_continuation_and_is_cut_off(stories):
    free = sl.generate(stories, "Once upon a time", max_new_tokens=150)[0]
    for begin, length in ((1, 3), (20, 40), (30, 200), (0, 4)):
        stop = free[begin : begin + length]
        first = free.find(stop)
        assert sl.generate(stories, "Once upon a time", max_new_tokens=150, stop=stop) == [free[:first]]
    ids = sl.generate(stories, "Once upon a time", max_new_tokens=150, stop=free[30:230], return_tokens=True)[0]
    assert len(ids) < 150
    several = sl.generate(
        stories, "Once upon a time", max_new_tokens=150, stop=["no such text", free[50:60], free[9:14]]
    )
    assert several == [free[: free.find(free[9:14])]]


def test_a_stop_text_ends_its_row_alone(stories):
    prompts = ["Once upon a time", "One day, a girl", "The dog"]
    free = sl.generate(stories, prompts, max_new_tokens=30)
    stop = free[1][10:16]
    expected = [text[: text.find(stop)] if stop in text else text for text in free]
    assert sl.generate(stories, prompts, max_new_tokens=30, stop=stop) == expected


def test_the_text_of_token_ids_is_the_text(stories):
    lens = Lens.of(stories)
    prompt = "Once upon a time"
    (text,) = sl.generate(stories, prompt, max_new_tokens=20)
    (ids,) = sl.generate(stories, prompt, max_new_tokens=20, return_tokens=True)
    whole = lens.tokenizer(prompt, add_special_tokens=False).input_ids + ids
    assert lens.tokenizer.decode(whole) == prompt + text


def test_a_prompt_may_end_within_a_character(stories):
    tokenizer = Lens.of(stories).tokenizer
    # A character of three bytes, each of which is a token here.
    ids = tokenizer("Once 中", add_special_tokens=False).input_ids
    assert all(token.startswith("<0x") for token in tokenizer.convert_ids_to_tokens(ids[-3:]))
    assert decode_continuation(Lens.of(stories), ids[:-1], ids[-1:]) == "中"
    assert decode_continuation(Lens.of(stories), ids, [403]) == tokenizer.decode([*ids, 403]).removeprefix("Once 中")


def test_sampling_goes_with_an_edit(model):
    edit = fitted(model)
    options: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.8, "top_p": 0.95, "seed": 5}
    with edit.applied(model, strength=2.0):
        wanted = sl.generate(model, PROMPTS, **options)
    assert sl.generate(model, PROMPTS, edit, strength=2.0, **options) == wanted
    assert sl.generate(model, PROMPTS, edit, strength=0.0, **options) == sl.generate(model, PROMPTS, **options)


def test_logits_that_are_nan_are_refused_with_the_prompt(model_folders, backend):
    broken = sl.load_model(str(model_folders["llama"]), backend, device="cpu")
    with torch.no_grad():
        next(iter(broken.parameters())).fill_(float("nan"))
    options: dict[str, Any]
    for options in ({}, {"temperature": 1.0}):
        with pytest.raises(sl.ActivationError, match="prompt 0"):
            sl.generate(broken, "w1 w2", **options)
