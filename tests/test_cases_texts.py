"""Texts and scores: what gave a wrong number, a traceback or a hang, with its right value or its refusal."""

import contextlib
import csv
import itertools
import json
import math
import os
import random
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import sea_lens as sl
from sea_lens._support.arguments import as_integer, as_number, as_strength
from sea_lens._support.regular_files import regular_size
from sea_lens._support.text_rows import read_json, read_rows, read_text
from sea_lens.evaluation.bbq_targets import SECOND, Case, targets
from sea_lens.evaluation.numbers import final_number
from sea_lens.evaluation.registry import BENCHMARKS
from sea_lens.evaluation.run import Task
from sea_lens.evaluation.truthfulqa import TruthfulQA
from sea_lens.texts.chat_prompts import for_model
from sea_lens.texts.digests import question_digests
from sea_lens.texts.truthfulqa_rows import truthfulqa_row

# --- Chat templates -----------------------------------------------------------------------------------------------

TURNS = (
    "{{{{ bos_token }}}}{{% for m in messages %}}{{% if m.role == 'user' %}}{user}{{% else %}}{assistant}{{% endif %}}"
    "{{% endfor %}}{{% if add_generation_prompt %}}{begin}{{% endif %}}"
)


def turns(user, assistant, begin=""):
    return TURNS.format(user=user, assistant=assistant, begin=begin)


LLAMA2 = turns("[INST] {{ m.content }} [/INST]", " {{ m.content }} {{ eos_token }}")
TEMPLATES = {
    "llama-2": LLAMA2,
    "llama-3": turns(
        "<|user|>\n\n{{ m.content | trim }}<|eot|>",
        "<|assistant|>\n\n{{ m.content | trim }}<|eot|>",
        "<|assistant|>\n\n",
    ),
    "chatml": turns(
        "<|im_start|>user\n{{ m.content }}<|im_end|>\n",
        "<|im_start|>assistant\n{{ m.content }}<|im_end|>\n",
        "<|im_start|>assistant\n",
    ),
    "thinking": turns(
        "<|im_start|>user\n{{ m.content }}<|im_end|>\n",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n{{ m.content }}<|im_end|>\n",
        "<|im_start|>assistant\n",
    ),
    "begun thought": turns("U:{{ m.content }}", "<bot>{{ m.content }}</s>", "<bot><think>\n"),
    "gemma": turns("<u>\n{{ m.content | trim }}</u>\n", "<m>\n{{ m.content | trim }}</u>\n", "<m>\n"),
    "mistral": turns("[INST] {{ m.content }}[/INST]", " {{ m.content | trim }}{{ eos_token }}"),
    "zephyr": turns("<|user|>\n{{ m.content }}</s>\n", "<|assistant|>\n{{ m.content }}</s>\n", "<|assistant|>"),
    "line end": turns("Q {{ m.content }}", "\n{{ m.content }}"),
}
ANSWERS = ["The cat sat.", "On the mat", "42 days", "a boy named Tim "]
QUESTION = {"question": "Where was the cat?"}


@pytest.fixture(scope="module")
def story(shared) -> Any:
    return sl.load_model(str(shared / "models" / "stories260K"), backend="bridge")


@pytest.fixture
def chat_tokenizer(shared) -> Any:
    return AutoTokenizer.from_pretrained(shared / "models" / "stories260K")


def rendering(tokenizer, answer):
    turn = {"role": "user", "content": sl.PromptTemplate.of("qa").render(QUESTION)}
    said = {"role": "assistant", "content": answer}
    return tokenizer.apply_chat_template([turn, said], tokenize=False)


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_and_answer_are_the_templates_own_rendering(chat_tokenizer, name):
    chat_tokenizer.chat_template = TEMPLATES[name]
    chat: Any = for_model(sl.PromptTemplate.of("qa"), chat_tokenizer, answers=True)
    prompt, answers = chat.with_answers(QUESTION, ANSWERS)
    for given_answer, written in zip(ANSWERS, answers, strict=True):
        whole = rendering(chat_tokenizer, given_answer)
        assert whole.startswith(prompt + written)
        assert written.strip() == given_answer.strip()
        assert given_answer.strip() not in whole[len(prompt + written) :]
        if name != "begun thought":
            assert whole.startswith(chat.render(QUESTION) + chat.complete(given_answer))
    assert prompt.endswith({"llama-2": "[/INST] ", "thinking": "</think>\n\n", "begun thought": "<bot>"}.get(name, ""))


@pytest.mark.parametrize(
    ("assistant", "message"),
    [
        ("{{ m.content | upper }}", "writes an answer 0 times"),
        ("", "writes an answer 0 times"),
        ("{{ m.content }} again: {{ m.content }}", "writes an answer 2 times"),
        ("{{ m.content | replace('o', '0') }}", "does not write the answer|writes an answer 0 times"),
        ("{{ m.content | replace('.', '!') }}", "does not write the answer 'It was Ann, not Bob.'"),
    ],
)
def test_a_template_that_changes_answers_is_refused_before_any_work(chat_tokenizer, assistant, message):
    chat_tokenizer.chat_template = turns("{{ m.content }}", assistant)
    with pytest.raises(sl.InputError, match=message):
        for_model(sl.PromptTemplate.of("qa"), chat_tokenizer, answers=True)
    # Nothing is asked of answers where the model writes them.
    assert for_model(sl.PromptTemplate.of("qa"), chat_tokenizer).render(QUESTION)


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ("", "does not write what the user says, 'Who came second\\?', as it is"),
        ("{{ m.content[0].text }}", "as it is|fails"),
        ("{{ m.content | lower }}", "does not write what the user says"),
        ("{{ raise_exception('only a system may begin') }}", "fails: only a system may begin"),
    ],
)
@pytest.mark.parametrize("answers", [True, False])
def test_a_template_that_does_not_write_the_question_is_refused_before_any_work(chat_tokenizer, user, message, answers):
    chat_tokenizer.chat_template = turns(user, "{{ m.content }}")
    with pytest.raises(sl.InputError, match=message):
        for_model(sl.PromptTemplate.of("qa"), chat_tokenizer, answers=answers)


def test_a_question_that_the_template_changes_is_refused(chat_tokenizer):
    chat_tokenizer.chat_template = turns("{{ m.content.split('\n')[-1] }}", "{{ m.content }}")
    chat: Any = for_model(sl.PromptTemplate.of("qa"), chat_tokenizer, answers=True)
    for call in (chat.render, lambda item: chat.with_answers(item, ANSWERS)):
        with pytest.raises(sl.InputError, match=r"does not write what the user says, .*Where was the cat\?"):
            call(QUESTION)


def test_an_answer_that_the_template_cuts_is_refused_by_its_row(story, tmp_path, monkeypatch):
    cut = turns("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
    monkeypatch.setattr(story.tokenizer, "chat_template", cut)
    path = tmp_path / "rows.json"
    rows = [
        {"query": "q", "choices": ["a b", "c"], "gold": 0},
        {"query": "q", "choices": ["x</think> y", "c"], "gold": 0},
    ]
    path.write_text(json.dumps(rows))
    with pytest.raises(sl.InputError, match=r"row 2: .* does not write the answer 'x</think> y'"):
        sl.evaluate(story, "capability", path, prompt="query", progress=False)


@pytest.mark.model
@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_in_a_chat_have_the_log_probability_of_the_rendered_conversation(
    story, shared, tmp_path, monkeypatch, name
):
    """By Hugging Face's own model: the tokens of the rendering that hold the answer's characters."""
    monkeypatch.setattr(story.tokenizer, "chat_template", TEMPLATES[name])
    choices = ["The cat sat.", "On the mat", "a boy named Tim"]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"query": "Where?", "choices": choices, "gold": 0}]))
    found = sl.evaluate(story, "capability", path, prompt="query", progress=False).items[0]["log_probs"]
    folder = shared / "models" / "stories260K"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATES[name]
    for choice, value in zip(choices, found, strict=True):
        turn, said = {"role": "user", "content": "Where?"}, {"role": "assistant", "content": choice}
        text = tokenizer.apply_chat_template([turn, said], tokenize=False)
        end = text.index(choice) + len(choice)
        tokens = tokenizer(text[:end], add_special_tokens=False).input_ids
        before = tokenizer(text[: text.index(choice)], add_special_tokens=False).input_ids
        start = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(tokens, before, strict=False)))
        if name == "llama-2":
            assert tokenizer.convert_ids_to_tokens(tokens[start])[0] == "▁"
        with torch.no_grad():
            predicted = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        expected = sum(predicted[i - 1, tokens[i]].item() for i in range(start, len(tokens)))
        assert value == pytest.approx(expected, abs=1e-4)


@pytest.mark.model
def test_no_answer_gets_the_templates_white_space_for_free(story, tmp_path, monkeypatch):
    """A digit does not take the space into its token, a word does: both answer for it."""
    monkeypatch.setattr(story.tokenizer, "chat_template", LLAMA2)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"query": "How many?", "choices": ["The cat", "7"], "gold": 0}]))
    item = sl.evaluate(story, "capability", path, prompt="query", progress=False).items[0]
    ids = [story.tokenizer(f"x {answer}", add_special_tokens=False).input_ids for answer in ("The cat", "7")]
    x = story.tokenizer("x", add_special_tokens=False).input_ids
    assert all(one[: len(x)] == x for one in ids)
    assert item["tokens"] == [len(one) - len(x) for one in ids]


# --- TruthfulQA ---------------------------------------------------------------------------------------------------


def test_both_files_of_truthfulqa_hold_the_same_items(shared):
    folder = shared / "data" / "truthfulqa"
    table, choices = (Task.read("truthfulqa", folder / name) for name in ("TruthfulQA.csv", "mc_task.json"))
    assert len(table.items) == len(choices.items) == 817
    for one, other in zip(table.items, choices.items, strict=True):
        assert one.fields == other.fields
        for side in ("best", "against", "true", "false"):
            assert {one.answers[i] for i in one.facts[side]} == {other.answers[i] for i in other.facts[side]}
    without = Task.read(TruthfulQA(full_stops=False), folder / "TruthfulQA.csv")
    changed = sum(
        a.fields == b.fields and a.answers != b.answers for a, b in zip(table.items, without.items, strict=True)
    )
    assert changed > 800
    assert any(not answer.endswith(".") for item in without.items for answer in item.answers)


@pytest.mark.model
def test_both_files_of_truthfulqa_give_the_same_scores(story, shared):
    folder = shared / "data" / "truthfulqa"
    found = [
        sl.evaluate(story, "truthfulqa", folder / name, prompt="qa", limit=6, progress=False)
        for name in ("TruthfulQA.csv", "mc_task.json")
    ]
    for one, other in zip(found[0].items, found[1].items, strict=True):
        for score in ("mc1", "mc2", "mc3"):
            assert one[score] == pytest.approx(other[score], abs=1e-5)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (([1, 0, 0, 1], ["Lily", "Tom", "Ben", "Tom"]), None, "row 2: the answer 'Tom' is both true and false"),
        (([1, 0, 0, 0], ["Lily", "Tom", "Ben", "Tom"]), None, "row 2: mc1_targets has the answer 'Tom' twice"),
        (([1, 1, 0, 1], ["Lily", "Tom", "Ben", "Tom"]), None, "row 2: mc1_targets has the answer 'Tom' twice"),
        (([1, 0], ["Lily", "Lily."]), None, "row 2: the answer 'Lily' is both true and false"),
        (([1, 0], ["Lily", " Lily "]), None, "row 2: the answer 'Lily' is both true and false"),
        (([1, 0], ["Zo\u00eb B.", "Zoe\u0308\u00a0B."]), None, "is both true and false"),
        (([1, 0, 0], ["Lily", "a b", "a  b"]), None, "row 2: mc1_targets has the answer 'a  b' twice"),
        (([1, 0], ["Lily", "Ben"]), ([0, 1], ["Lily", "Ben"]), "row 2: the answer 'Lily' is both true and false"),
        (([1, 0], ["Lily", "Tom", "Ben"]), None, "row 2: mc1_targets must map"),
        (([1, 2], ["Lily", "Tom"]), None, "row 2: mc1_targets must map"),
        (([1, 0], ["Lily", ["Tom"]]), None, "row 2: mc1_targets has an empty answer, or one that is no text"),
    ],
)
@pytest.mark.parametrize("read", [lambda path: Task.read("truthfulqa", path), sl.Demonstrations.from_truthfulqa])
def test_answers_on_both_sides_or_twice_are_refused(tmp_path, read, first, second, message):
    def row(one, other):
        return {
            "question": "q",
            "mc1_targets": {"labels": one[0], "choices": one[1]},
            "mc2_targets": {"labels": other[0], "choices": other[1]},
        }

    path = tmp_path / "rows.json"
    good = ([1, 0], ["Lily", "Ben"])
    path.write_text(json.dumps([row(good, good), row(first, second or first)]))
    with pytest.raises(sl.FileError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("best", "true", "false", "message"),
    [
        ("a", "a; b", "c; a", "the answer 'a.' is both true and false"),
        ("a", "a; b", "c; a.", "the answer 'a.' is both true and false"),
        ("a", "a; b; b.", "c", "Correct Answers has the answer 'b.' twice"),
        ("a", "a", "c; c", "Incorrect Answers has the answer 'c' twice"),
        ("a", "a; b c", "b  c", "the answer 'b c.' is both true and false"),
        ("Zo\u00eb", "a", "Zoe\u0308", "the answer 'Zo\u00eb.' is both true and false"),
    ],
)
def test_a_table_with_an_answer_on_both_sides_or_twice_is_refused(tmp_path, best, true, false, message):
    path = tmp_path / "T.CSV"
    path.write_text(f"Question,Best Answer,Correct Answers,Incorrect Answers\nq,x,x,y\nq,{best},{true},{false}\n")
    for full_stops in (True, False):
        with pytest.raises(sl.FileError, match=f"row 2: {re.escape(message)}"):
            Task.read(TruthfulQA(full_stops=full_stops), path)


def test_the_published_slips_are_those_that_are_known(shared):
    """Nothing else of the published table stands twice, and each of the known ones does."""
    with (shared / "data" / "truthfulqa" / "TruthfulQA.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    refused = []
    for number, row in enumerate(rows, start=1):
        try:
            truthfulqa_row("t", number, row | {"Question": "another question"})
        except sl.FileError:
            refused.append(number)
    assert refused == [133, 193, 348, 355, 811]


def test_other_repeated_answers_are_refused_where_they_could_count(tmp_path):
    path = tmp_path / "rows.jsonl"
    choice = {"query": "q", "choices": ["a", "b", "a"], "gold": 0}
    path.write_text(json.dumps(choice))
    with pytest.raises(sl.FileError, match="row 1: the right choice 'a' stands among 'choices' twice"):
        Task.read("capability", path)
    path.write_text(json.dumps(choice | {"gold": 1}))
    assert Task.read("capability", path).items[0].answers == ("a", "b", "a")
    for again in ("a", "a.", " a"):
        path.write_text(json.dumps(bbq_row("Age", ["a", "b", again], ["old", "nonOld", "unknown"], ["old"])))
        for read in (lambda: Task.read("bbq", path), lambda: sl.Demonstrations.from_bbq(path)):
            with pytest.raises(sl.FileError, match=f"row 1: the item has the answer '{again}' twice"):
                read()
    pair = {"sent_more": "s", "sent_less": "s", "stereo_antistereo": "stereo", "bias_type": "age"}
    path.write_text(json.dumps(pair))
    with pytest.raises(sl.FileError, match="row 1: both sentences are 's'"):
        Task.read("crows_pairs", path)


# --- Numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so it costs $9{,}500", "9500"),
        (r"\boxed{9\,500}", "9500"),
        (r"\boxed{-\$1{,}234.50}", "-1234.50"),
        ("\u22125 degrees", "-5"),
        ("it is \u20135 degrees", "-5"),
        ("it is \u2212$5", "-5"),
        ("$-5", "-5"),
        ("1\u00a0234", "1234"),
        ("1\u2009234\u2009567 people", "1234567"),
        ("1\u202f234,50 €", "1234.50"),
        ("1 234", "234"),
        ("1 000 000", "1000000"),
        ("route A-12", "12"),
        ("that is 2^10 of them", "2"),
        ("7 x^{12}", "7"),
        ("3 × 10⁵ grains", "300000"),
        ("2 × 10⁻³ of 10²", "10"),
        ("42¹", "42"),
        ("route A\u221212", "12"),
        ("10\u201315", "15"),
        ("COVID-19", "19"),
        ("$1,234.50.", "1234.50"),
        ("12,34,567", "1234567"),
        ("1.234,50", "1234.50"),
        ("1.234.567", "1234567"),
        ("12,5", "12.5"),
        ("the ages 1,2,3", "3"),
        ("1'234'567", "1234567"),
        ("1_000", "1000"),
        ("3/4", "0.75"),
        ("-3/4", "-0.75"),
        (r"\frac{3}{4}", "0.75"),
        ("1 1/2", "1.5"),
        ("2½", "2.5"),
        ("−½", "-0.5"),
        ("on 3/4/2020", "2020"),
        ("5/0", "0"),
        ("1e3", "1000"),
        ("1.5e-3.", "0.0015"),
        (r"2 \times 10^3", "2000"),
        ("an area of 12 m^2", "12"),
        ("exactly 12.", "12"),
        ("50%", "50"),
        ("(12)", "12"),
        ("**-5**", "-5"),
        ("- $5", "5"),
        ("so x=-3", "-3"),
        ("5 - 3", "3"),
        ("#### -1,000 (not 7)", "-1000"),
        ("7 ####", "7"),
        ("", None),
        ("\u0663", "3"),
    ],
)
def test_the_final_number_as_people_write_it(text, expected):
    found = final_number(text)
    assert found is None if expected is None else found == Decimal(expected)


WRITTEN = {
    "plain": lambda whole, cents: f"{whole}{cents}",
    "commas": lambda whole, cents: f"{whole:,}{cents}",
    "latex": lambda whole, cents: f"{whole:,}".replace(",", "{,}") + cents,
    "no-break": lambda whole, cents: f"{whole:,}".replace(",", "\u00a0") + cents,
    "thin": lambda whole, cents: f"{whole:,}".replace(",", "\u2009") + cents,
    "narrow": lambda whole, cents: f"{whole:,}".replace(",", "\u202f") + cents,
    "apostrophe": lambda whole, cents: f"{whole:,}".replace(",", "'") + cents,
    "underscore": lambda whole, cents: f"{whole:_}{cents}",
}


@settings(max_examples=300, deadline=None)
@given(
    whole=st.integers(0, 10**15),
    cents=st.one_of(st.just(""), st.integers(0, 99).map(lambda n: f".{n:02d}")),
    sign=st.sampled_from(["", "-", "\u2212", "\ufe63", "\uff0d"]),
    currency=st.sampled_from(["", "$", r"\$", "€", "£"]),
    style=st.sampled_from(sorted(WRITTEN)),
    before=st.sampled_from(["", "It was 7, now ", "The answer is ", "= ", "#### ", r"\boxed{", "("]),
    after=st.sampled_from(["", ".", " dollars", "%", "}", ")", ",", "!\n", " degrees."]),
)
def test_a_number_is_the_same_however_it_is_written(whole, cents, sign, currency, style, before, after):
    found = final_number(f"{before}{sign}{currency}{WRITTEN[style](whole, cents)}{after}")
    assert found == Decimal(f"{'-' if sign else ''}{whole}{cents}")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="0123456789,. -/'$^{}\\e\u00a0\u2212½#x×_", max_size=60))
def test_any_text_has_a_finite_last_number_or_none(text):
    found = final_number(text)
    assert found is None or found.is_finite()
    # Exponents alone are no numbers.
    if "^" not in text:
        assert (found is not None) == bool(re.search("[0-9½]", text))


def test_every_published_solution_of_gsm8k_ends_in_its_number(shared):
    lines = (shared / "data" / "capability" / "gsm8k_test.jsonl").read_text(encoding="utf-8").split("\n")
    for line in filter(None, lines):
        solution = json.loads(line)["answer"]
        gold = Decimal(solution.split("####")[1].strip().replace(",", ""))
        assert final_number(solution) == gold
        assert final_number(solution.replace("####", "")) == gold


@pytest.mark.parametrize(
    "part", ["1,", "1 ", "1/", "1'", "234,", "12,34,", "1.234.", "1e", "^{", "\\frac{", "1 234", "#### "]
)
def test_a_text_of_nothing_but_beginnings_of_numbers_is_read_in_linear_time(part):
    final_number(part * 5000)


# --- BBQ ----------------------------------------------------------------------------------------------------------


def bbq_row(category, answers, groups, stereotyped, question: str | int = "1", **changes):
    return {
        "category": category,
        "question_index": question,
        "context": "c",
        "question": "q",
        "label": 0,
        "question_polarity": "neg",
        "context_condition": "ambig",
        "answer_info": {f"ans{i}": [answers[i], groups[i]] for i in range(3)},
        "additional_metadata": {"stereotyped_groups": stereotyped},
        **{f"ans{i}": answers[i] for i in range(3)},
        **changes,
    }


def found_targets(tmp_path, rows):
    path = tmp_path / "bbq.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return [item.facts["target"] for item in Task.read("bbq", path).items]


NAMES = ["Ann", "Bob", "Unknown"]


def test_race_and_gender_decide_together(tmp_path):
    def rows(question):
        return [
            bbq_row("Race_x_gender", NAMES, groups, ["Black", "African American"], question)
            for groups in (
                ["F-Black", "M-Black", "unknown"],
                ["F-Black", "F-White", "unknown"],
                ["M-White", "F-Black", "unknown"],
            )
        ]

    # Question 4 of the published file is about women, question 2 about men.
    assert found_targets(tmp_path, rows("4")) == [0, 0, 1]
    assert found_targets(tmp_path, rows("2")[:1]) == [1]
    # A file's own items tell, whatever the number: two men of different race ask about men.
    men = bbq_row("Race_x_gender", NAMES, ["M-White", "M-Black", "unknown"], ["Black"], "q-9")
    both = bbq_row("Race_x_gender", NAMES, ["F-Black", "M-Black", "unknown"], ["Black"], "q-9")
    assert found_targets(tmp_path, [both, men]) == [1, 1]
    # Without a question there is nothing that tells between a woman and a man of one race.
    with pytest.warns(UserWarning, match="of 1 items, 1 do not tell which answer names the stereotyped group"):
        assert found_targets(tmp_path, [both]) == [None]


def test_race_and_status_decide_together(tmp_path):
    groups = ["highSES-F-Asian", "lowSES-F-Asian", "unknown"]
    # Question 21 of the published file is about people of high status, question 1 of low status.
    for question, expected in (("21", 0), ("1", 1), (1, 1)):
        row = bbq_row("Race_x_SES", NAMES, groups, ["Asian"], question)
        assert found_targets(tmp_path, [row]) == [expected]


def test_an_answer_without_a_group_is_known_by_its_words(tmp_path):
    answers = ["The Latino man", "The Latina woman", "Unknown"]
    row = bbq_row("Race_x_gender", answers, ["M-Latino", "", "unknown"], ["Hispanic", "Latino"], "13")
    row["answer_info"]["ans1"] = ["", ""]
    assert found_targets(tmp_path, [row]) == [1]


def test_the_authors_target_is_taken_where_the_row_has_it(tmp_path):
    row = bbq_row("Race_x_gender", NAMES, ["F-Black", "M-Black", "unknown"], ["Black"], "4")
    inside = row | {"additional_metadata": row["additional_metadata"] | {"target_loc": 1}}
    assert found_targets(tmp_path, [row, row | {"target_loc": 1}, inside, row | {"target_loc": "x"}]) == [0, 1, 1, 0]
    for wrong in (2, 3, "one", True):
        with pytest.raises(sl.FileError, match=r"row 1: field 'target_loc' must be one of \[0, 1\]"):
            found_targets(tmp_path, [row | {"target_loc": wrong}])


def test_every_published_item_of_race_and_gender_has_its_target(shared, tmp_path):
    lines = (shared / "data" / "bbq" / "disambig_validation.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if '"category": "Race_x_gender"' in line]
    found = found_targets(tmp_path, rows)
    assert len(found) == 1093
    assert None not in found
    # Where both answers are of the stereotyped race, gender alone tells, and the same one for all items of a question.
    told: dict[str, set[str]] = {}
    for row, target in zip(rows, found, strict=True):
        group = row["answer_info"][f"ans{target}"][-1]
        if row["additional_metadata"]["subcategory"] == "intersectional_a" and group:
            told.setdefault(row["question_index"], set()).add(group[0])
    assert len(told) > 30
    assert all(len(genders) == 1 for genders in told.values())


def test_the_table_of_questions_is_what_the_published_items_say(shared):
    """Two answers that differ in race alone share what the question is about; each question's items agree."""
    lines = (shared / "data" / "bbq" / "disambig_validation.jsonl").read_text(encoding="utf-8").split("\n")
    told: dict[tuple[str, str], set[str]] = {}
    cases = []
    for row in map(json.loads, filter(None, lines)):
        if row["category"] not in SECOND:
            continue
        groups = [row["answer_info"][f"ans{i}"] for i in range(3)]
        named = [group[-1] for group in groups if group[-1] not in ("unknown", "")]
        seconds = {group.split("-")[0].casefold() for group in named}
        if row["additional_metadata"]["subcategory"] == "intersectional_b" and len(named) == 2:
            told.setdefault((row["category"], row["question_index"]), set()).update(seconds)
    for (category, question), seconds in told.items():
        assert len(seconds) == 1
        pair = [["A", f"{one}-Black"] for one in SECOND[category]]
        cases.append(Case(category, question, [*pair, ["?", "unknown"]], 2, ["Black"]))
    assert len(cases) > 60
    for case, found in zip(cases, targets(cases), strict=True):
        assert found is not None
        assert {SECOND[case.category][found]} == told[case.category, str(case.question)]


# --- Files --------------------------------------------------------------------------------------------------------

ROW = {"query": "q", "choices": ["a", "b"], "gold": 0}


@pytest.mark.parametrize("name", ["d.CSV", "d.Csv", "d.tsv", "d.TSV", "d.JSON", "d.Json", "d.JSONL", "d.jsonl", "d"])
def test_what_a_name_ends_in_is_read_in_any_case(tmp_path, name):
    path = tmp_path / name
    kind = path.suffix.casefold()
    rows = [{"a": "x", "b": "y, z"}, {"a": "\u2028", "b": "w"}]
    if kind in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["a", "b"], delimiter="," if kind == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = "\n".join(json.dumps(row) for row in rows)
        path.write_text(json.dumps(rows) if kind == ".json" else lines, encoding="utf-8")
    assert list(read_rows(path)) == [(1, rows[0]), (2, rows[1])]


def test_endings_in_capitals_are_known_to_prompts_and_benchmarks(tmp_path):
    prompt = tmp_path / "P.JSON"
    prompt.write_text(json.dumps({"prompt": "{query} ->"}))
    assert sl.PromptTemplate.of(prompt).prompt == "{query} ->"
    text = tmp_path / "T.TXT"
    text.write_text("one\n\ntwo")
    assert Task.read("perplexity", text).items[0].fields == {"text": "one\n\ntwo"}
    with pytest.raises(sl.FileError, match="reads no plain text"):
        Task.read("capability", text)
    rows = tmp_path / "R.JSON"
    rows.write_text(json.dumps([ROW]))
    assert len(Task.read("capability", rows).items) == 1


@pytest.mark.model
def test_empty_lines_of_a_text_file_are_left_out_and_counted(story, tmp_path):
    path = tmp_path / "wikitext.json"
    path.write_text(json.dumps(["One day", "", "  \n", {"text": ""}, "Lily was happy"]))
    task = Task.read("perplexity", path)
    assert [item.row for item in task.items] == [1, 5]
    found = sl.evaluate(story, task, progress=False)
    assert (found.provenance["data"]["items"], found.provenance["data"]["left_out"]) == (2, 3)
    path.write_text(json.dumps(["", " "]))
    with pytest.raises(sl.FileError, match="every text is empty"):
        Task.read("perplexity", path)


@pytest.mark.parametrize("benchmark", [*BENCHMARKS, "from_bbq", "from_halueval", "from_truthfulqa", "from_jsonl"])
@pytest.mark.parametrize(
    "content", ["[1]", "[null]", "[[]]", '["a", 2]', '[{"a": 1}, 3]', "1", '"x"', "{}", "[]", "null"]
)
def test_a_file_of_something_else_is_refused(tmp_path, benchmark, content):
    read: Any = getattr(sl.Demonstrations, benchmark, None) or (lambda path: Task.read(benchmark, path))
    for name in ("d.json", "d.jsonl"):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(sl.FileError, match=re.escape(str(path))):
            read(path)


@pytest.mark.parametrize("benchmark", [name for name in BENCHMARKS if name != "perplexity"])
def test_a_row_that_is_no_object_is_named(tmp_path, benchmark):
    path = tmp_path / "d.json"
    path.write_text("[1]")
    with pytest.raises(sl.FileError, match=r"d\.json, row 1: expected an object with fields, got int"):
        Task.read(benchmark, path)


def test_a_key_that_stands_twice_in_an_object_is_refused(tmp_path):
    lines = tmp_path / "d.jsonl"
    lines.write_text('{"neutral": "a", "positive": "a b", "negative": "a c"}\n'
                     '{"neutral": "a", "positive": "a b", "positive": "a d", "negative": "a c"}\n')  # fmt: skip
    with pytest.raises(sl.FileError, match=r"d\.jsonl, row 2: the key 'positive' stands twice"):
        sl.Demonstrations.from_jsonl(lines)
    lines.write_text('{"prompt": "a", "target": " b", "foil": " c", "foil": " d"}')
    with pytest.raises(sl.FileError, match="row 1: the key 'foil' stands twice"):
        sl.Contrasts.from_jsonl(lines)
    table = tmp_path / "mc.json"
    table.write_text('[{"question": "q", "mc1_targets": {"a": 1, "b": 0, "a": 0}, "mc2_targets": {"a": 1, "b": 0}}]')
    for read in (lambda: Task.read("truthfulqa", table), lambda: sl.Demonstrations.from_truthfulqa(table)):
        with pytest.raises(sl.FileError, match="the key 'a' stands twice"):
            read()
    prompt = tmp_path / "p.json"
    prompt.write_text('{"prompt": "{query}", "prompt": "{query}!"}')
    with pytest.raises(sl.FileError, match="the key 'prompt' stands twice"):
        sl.PromptTemplate.of(prompt)


def test_pipes_devices_folders_and_sockets_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to("/dev/zero")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    for path, message in (
        (tmp_path / "pipe.json", "is a pipe: expected a file"),
        (tmp_path / "folder.json", "is a folder: expected a file"),
        (tmp_path / "link.json", "is a device: expected a file"),
        (tmp_path / "loop.json", "loop.json: "),
        (Path("/dev/zero"), "is a device: expected a file"),
        (tmp_path / "none.json", "No such file"),
    ):
        for read in (
            lambda path=path: Task.read("capability", path),
            lambda path=path: sl.Demonstrations.from_jsonl(path),
            lambda path=path: sl.Demonstrations.from_truthfulqa(path),
            lambda path=path: regular_size(path),
        ):
            with pytest.raises(sl.FileError, match=message):
                read()
    assert regular_size(__file__) == Path(__file__).stat().st_size


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a" * 300 + ".json", "File name too long"),
        ("a/" * 3000 + ".json", "File name too long|too long"),
        ("a\0b.json", "cannot hold a NUL"),
        ("a\ud800.json", "half a character"),
        ("b\udcff.json", "half a character"),
        ("", "is a folder"),
    ],
)
def test_names_that_no_file_can_have_are_refused(name, message):
    for read in (
        lambda: Task.read("capability", name),
        lambda: sl.Demonstrations.from_jsonl(name),
        lambda: sl.Contrasts.from_jsonl(name),
        lambda: read_json(name),
    ):
        with pytest.raises(sl.FileError, match=message) as refused:
            read()
        assert len(str(refused.value)) < 500
        str(refused.value).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no rows"),
        (b"\xef\xbb\xbf", "has no rows"),
        (b"\n\n \n", "has no rows"),
        ('{"a": 1}'.encode("utf-16"), "it is in UTF-16"),
        ('{"a": 1}'.encode("utf-16-be"), "not a UTF-8 text file"),
        (b'{"a": \xff}', "not a UTF-8 text file"),
        (b"[" * 3000, "row 1: .*JSON"),
        (b'{"a":' * 3000, "row 1: .*JSON"),
        (b"[" * 200000, "row 1: .*JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "row 1: JSON that Python cannot hold"),
    ],
)
def test_broken_text_files_are_refused(tmp_path, content, message):
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    with pytest.raises(sl.FileError, match=message):
        list(read_rows(path))
    other = tmp_path / "d.json"
    other.write_bytes(content)
    with pytest.raises(sl.FileError, match=r"d\.json"):
        list(read_rows(other))


def test_files_of_other_line_ends_and_of_one_huge_line_are_read(tmp_path):
    path = tmp_path / "d.jsonl"
    for end in (b"\n", b"\r\n", b"\r"):
        path.write_bytes(end.join(json.dumps({"a": i}).encode() for i in range(3)) + end)
        assert [row for _, row in read_rows(path)] == [{"a": i} for i in range(3)]
    table = tmp_path / "d.csv"
    for end in ("\n", "\r\n", "\r"):
        table.write_bytes(f"a,b{end}1,2{end}".encode())
        assert list(read_rows(table)) == [(1, {"a": "1", "b": "2"})]
    path.write_text(json.dumps({"a": "x" * 2_000_000}))
    ((_, row),) = read_rows(path)
    assert len(row["a"]) == 2_000_000
    assert read_text(path)[0] == "{"


def test_errors_stay_short_however_long_the_value_is(tmp_path):
    path = tmp_path / "d.jsonl"
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    for value in ("x" * 100_000 + "\n", [1] * 100_000, {"k" * 5000: 1}, deep):
        path.write_text(json.dumps({"query": value, "choices": ["a", "b"], "gold": value}))
        with pytest.raises(sl.FileError) as refused:
            Task.read("capability", path)
        assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    "template",
    ["{question:1000000000}", "{question!r}", "{question:{question}}", "{question!s:>10}", "{question:}{question:9}"],
)
def test_sizes_in_a_prompt_are_refused(tmp_path, template):
    with pytest.raises(sl.InputError, match=r"expected \{question\} alone"):
        sl.PromptTemplate("mine", template)
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"prompt": template}))
    with pytest.raises(sl.FileError, match=r"p\.json: prompt .*: expected \{question\} alone"):
        sl.PromptTemplate.of(path)
    path.write_text(json.dumps({"prompt": "{question}", "completion": template.replace("question", "answer")}))
    with pytest.raises(sl.FileError, match=r"p\.json: completion .*: expected \{answer\} alone"):
        sl.PromptTemplate.of(path)
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"question": "q", "right_answer": "a", "hallucinated_answer": "b"}))
    with pytest.raises(sl.InputError, match=r"expected \{question\} alone"):
        sl.Demonstrations.from_halueval(data, template=template)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_bytes_are_rows_or_a_refusal(data, tmp_path_factory):
    """A short form of the fuzzer, over the readers of texts."""
    good = json.dumps([{"question": "q", "mc1_targets": {"a": 1, "b": 0}, "mc2_targets": {"a": 1, "b": 0}}]).encode()
    content = bytearray(data.draw(st.sampled_from([good, json.dumps(ROW).encode(), b"a,b\n1,2\n"])))
    seed = data.draw(st.integers(0, 2**32))
    rng = random.Random(seed)
    for _ in range(rng.randint(0, 4)):
        place = rng.randrange(len(content) + 1)
        content[place : place + rng.randint(0, 5)] = rng.randbytes(rng.randint(0, 5))
    path = tmp_path_factory.mktemp("bytes") / data.draw(st.sampled_from(["d.json", "d.jsonl", "d.csv", "d.tsv"]))
    path.write_bytes(bytes(content))
    for read in (lambda: list(read_rows(path)), *(lambda name=name: Task.read(name, path) for name in BENCHMARKS)):
        with contextlib.suppress(sl.FileError):
            read()


# --- Overlap and arguments ----------------------------------------------------------------------------------------


def test_equal_questions_have_equal_digests():
    same = ["Who is it?", " who  is it", "WHO IS IT ?!", "Who is\nit.", "Who is\u00a0it?"]
    assert len(question_digests(same)) == 1
    (digest,) = question_digests(same)
    assert re.fullmatch("[0-9a-f]{16}", digest)
    assert len(question_digests(["a", "b", "?", "!", "a b", "ab", "", "\ud800"])) == 8


class Stubborn:
    def __float__(self):
        raise OSError("no")

    __index__ = __float__
    __repr__ = __float__  # type: ignore[assignment]


@pytest.mark.parametrize(
    "value",
    [10**400, -(10**5000), "3", b"3", "x" * 100_000, math.nan, -math.inf, Decimal("1e999"), Decimal("sNaN"), 1j, None,
     True, np.bool_(True), torch.tensor(True), [1] * 100_000, np.ones(3), torch.empty((), device="meta"), Stubborn()],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_no_number_is_one_clear_error(value):
    for read in (lambda: as_integer(value, "n", least=1), lambda: as_number(value, "n"), lambda: as_strength(value)):
        with pytest.raises(sl.InputError, match=r"^(n|strength) ") as refused:
            read()
        assert len(str(refused.value)) < 500


def test_numbers_of_all_kinds_are_numbers():
    for value in (3, np.int64(3), np.uint8(3), torch.tensor(3)):
        assert (as_integer(value, "n"), as_number(value, "n")) == (3, 3.0)
    for value in (2.5, np.float32(2.5), torch.tensor(2.5), Decimal("2.5")):
        assert as_number(value, "n") == as_strength(value) == 2.5
    for value in (
        torch.tensor([1.0, math.nan]),
        torch.tensor([1j]),
        torch.tensor([True]),
        torch.empty(2, device="meta"),
    ):
        with pytest.raises(sl.InputError, match="strength of shape"):
            as_strength(value)
    with pytest.raises(sl.InputError, match="at most"):
        as_integer(2**63, "n")


def test_the_warning_of_bbq_names_the_file_and_is_not_given_for_a_few(tmp_path):
    known = bbq_row("Age", NAMES, ["old", "nonOld", "unknown"], ["old"])
    other = bbq_row("Age", NAMES, ["young", "nonOld", "unknown"], ["old"])
    assert found_targets(tmp_path, [known] * 10 + [other]) == [0] * 10 + [None]
    with pytest.warns(UserWarning, match=r"bbq\.jsonl: of 2 items, 1 do not tell"):
        found_targets(tmp_path, [known, other])
