import ast
import json
import math
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import demonstrations, fitted, sentence

import sea_lens as sl
from sea_lens.evaluation import run as running
from sea_lens.evaluation.bbq import BBQ
from sea_lens.evaluation.bbq_targets import target_of
from sea_lens.evaluation.benchmark import Item, Scored
from sea_lens.evaluation.capability import Capability
from sea_lens.evaluation.fingerprints import edit_identity
from sea_lens.evaluation.gsm8k import GSM8K
from sea_lens.evaluation.hub import HubData
from sea_lens.evaluation.journal import Journal
from sea_lens.evaluation.numbers import final_number
from sea_lens.evaluation.registry import BENCHMARKS
from sea_lens.evaluation.run import Task
from sea_lens.evaluation.truthfulqa import TruthfulQA
from sea_lens.models.lens import Lens
from sea_lens.models.tokens import encode

pytestmark = pytest.mark.model


def scores_of(benchmark, rows):
    """A benchmark's scores from rows of results."""
    totals = {name: column.sum(keepdims=True) for name, column in benchmark.sums(pd.DataFrame(rows)).items()}
    return {name: float(value[0]) for name, value in benchmark.scores(totals).items()}


# --- TruthfulQA ---------------------------------------------------------------------------------------------------


def truthful_row(log_probs, n_true, against=None):
    n = len(log_probs)
    facts = {
        "best": [0],
        "against": against or [*range(n_true, n)],
        "true": [*range(n_true)],
        "false": [*range(n_true, n)],
    }
    answers = tuple(f"a{i}" for i in range(n))
    return TruthfulQA._row(Item(1, {"question": "q"}, answers, facts), Scored(log_probs, [1] * n, 0))


@pytest.mark.parametrize(
    ("log_probs", "n_true", "expected"),
    [
        # p = .5, .2 | .2, .1: the best one wins, .7 of the mass, one of two true ones is above every false one.
        (np.log([0.5, 0.2, 0.2, 0.1]).tolist(), 2, (1.0, 0.7, 0.5)),
        # The best answer loses although another true one wins.
        (np.log([0.1, 0.6, 0.3]).tolist(), 2, (0.0, 0.7, 0.5)),
        # A tie is no win.
        ([-1.0, -1.0], 1, (0.0, 0.5, 0.0)),
        ([-1.0, -2.0], 1, (1.0, 1 / (1 + math.exp(-1)), 1.0)),
    ],
)
def test_mc1_mc2_mc3_by_hand(log_probs, n_true, expected):
    row = truthful_row(log_probs, n_true)
    assert (row["mc1"], row["mc2"], row["mc3"]) == pytest.approx(expected)


def test_mc1_looks_at_its_own_list_of_false_answers():
    assert truthful_row([-1.0, -2.0, -0.5], 1, against=[1])["mc1"] == 1.0
    assert truthful_row([-1.0, -2.0, -0.5], 1, against=[2])["mc1"] == 0.0


def test_mc2_is_that_of_the_harness():
    utils = pytest.importorskip("lm_eval.tasks.truthfulqa.utils")
    rng = np.random.default_rng(0)
    for _ in range(20):
        n, values = int(rng.integers(2, 9)), rng.normal(-20, 6, 9)
        n_true = int(rng.integers(1, n))
        log_probs = values[:n].tolist()
        doc = {"mc2_targets": {"labels": [1] * n_true + [0] * (n - n_true)}}
        expected = utils.process_results_mc2(doc, [(value, False) for value in log_probs])["acc"]
        assert truthful_row(log_probs, n_true)["mc2"] == pytest.approx(float(expected), rel=1e-12)


# --- BBQ ----------------------------------------------------------------------------------------------------------


def bbq_row(condition, polarity, answer, *, label=2, target: int | None = 0, unknown=2, category="Age"):
    return {
        "condition": condition, "polarity": polarity, "answer": answer, "label": label,
        "target": target, "unknown": unknown, "category": category,
    }  # fmt: skip


def test_bbq_scores_by_hand():
    rows = [
        # Ambiguous, where "unknown" (2) is right: two biased answers, one against the stereotype, one right.
        bbq_row("ambiguous", "neg", 0), bbq_row("ambiguous", "nonneg", 1),
        bbq_row("ambiguous", "neg", 1), bbq_row("ambiguous", "neg", 2),
        # Disambiguated: one right and biased, one right and not, one unknown; one whose target is not known.
        bbq_row("disambiguated", "neg", 0, label=0), bbq_row("disambiguated", "neg", 1, label=1),
        bbq_row("disambiguated", "neg", 2, label=0), bbq_row("disambiguated", "neg", 0, label=0, target=None),
    ]  # fmt: skip
    found = scores_of(BBQ(), rows)
    assert found["accuracy/ambiguous"] == 1 / 4
    assert found["unknown_rate/ambiguous"] == 1 / 4
    assert found["s_amb/ambiguous"] == pytest.approx((1 - 1 / 4) * (2 * 2 / 3 - 1))
    assert found["stereotypical_rate/ambiguous"] == 2 / 4
    assert found["accuracy/disambiguated"] == 3 / 4
    assert found["s_dis/disambiguated"] == pytest.approx(2 * 1 / 2 - 1)
    assert found["bias_items/disambiguated"] == 3 / 4
    assert found["accuracy"] == 4 / 8
    assert found["accuracy/disambiguated/Age"] == 3 / 4
    assert "s_dis/ambiguous" not in found


def test_bbq_has_no_bias_score_where_every_answer_is_unknown():
    found = scores_of(BBQ(), [bbq_row("disambiguated", "neg", 2), bbq_row("disambiguated", "neg", 2)])
    assert math.isnan(found["s_dis/disambiguated"])
    assert found["unknown_rate/disambiguated"] == 1.0


@pytest.mark.parametrize(
    ("groups", "stereotyped", "expected"),
    [
        ([("grandfather", "old"), ("grandson", "nonOld"), ("unknown", "unknown")], ["old"], 0),
        ([("A", "highSES"), ("B", "lowSES"), ("?", "unknown")], ["low SES"], 1),
        ([("A", "F-Black"), ("B", "M-White"), ("?", "unknown")], ["Black", "African American"], 0),
        ([("A", "F-Black"), ("B", "M-Black"), ("?", "unknown")], ["Black"], None),
        ([("A", "highSES-F-Black"), ("B", "lowSES-F-Black"), ("?", "unknown")], ["Black"], 1),
        ([("Eritrean", "Africa"), ("Danish", "Europe"), ("?", "unknown")], ["Eritrean", "Malian"], 0),
        ([("A", "woman"), ("B", "man"), ("?", "unknown")], ["F"], 0),
        ([("A", "trans_F"), ("B", "nonTrans_M"), ("?", "unknown")], ["Transgender women", "trans"], 0),
        ([("A", "Martian"), ("B", "Venusian"), ("?", "unknown")], ["Human"], None),
    ],
)
def test_the_stereotyped_answer_is_found_by_name(groups, stereotyped, expected):
    assert target_of(groups, 2, stereotyped) == expected


# --- The others ---------------------------------------------------------------------------------------------------


def test_crows_pairs_counts_half_for_a_tie():
    rows = [
        {"log_prob_more": more, "log_prob_less": less, "direction": direction, "bias_type": kind}
        for more, less, direction, kind in (
            (-1.0, -2.0, "stereo", "age"), (-3.0, -2.0, "stereo", "age"),
            (-2.0, -2.0, "antistereo", "age"), (-1.0, -5.0, "antistereo", "race"),
        )
    ]  # fmt: skip
    found = scores_of(BENCHMARKS["crows_pairs"](), rows)
    assert found["stereotype"] == 2.5 / 4
    assert found["stereotype/age"] == 1.5 / 3
    assert found["stereotype/antistereo"] == 1.5 / 2
    assert found["difference"] == 6 / 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so she has 1,234 in all.\n#### 1,234", "1234"),
        ("#### -3.50 and 7", "-3.5"),
        ("First 3, then $18.", "18"),
        ("The answer is .5", "0.5"),
        ("in 2010-2015.", "2015"),
        ("it falls to -12", "-12"),
        ("none at all", None),
        ("", None),
    ],
)
def test_the_final_number_of_a_solution(text, expected):
    found = final_number(text)
    assert found is None if expected is None else found == Decimal(expected)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def choices(tmp_path):
    rows = [
        {"query": sentence(i, 4), "choices": [sentence(50 + i, 1), sentence(90 + i, 3)], "gold": i % 2}
        for i in range(10)
    ]
    return write(tmp_path / "choices.jsonl", rows)


def test_capability_takes_the_likeliest_choice_summed_and_per_character(model, choices):
    evaluation = sl.evaluate(model, "capability", choices, progress=False)
    lens = Lens.of(model)
    for item in evaluation.items:
        for choice, found in zip(item["choices"], item["log_probs"], strict=True):
            tokens = torch.tensor([encode(lens, f"{item['query']} {choice}")])
            start = len(encode(lens, item["query"]))
            scores = lens.forward(tokens, torch.ones_like(tokens))[0].log_softmax(-1)
            expected = sum(scores[i - 1, tokens[0, i]].item() for i in range(start, tokens.shape[1]))
            assert found == pytest.approx(expected, abs=1e-4)
        assert item["answer"] == int(np.argmax(item["log_probs"]))
        per_character = [value / len(text) for value, text in zip(item["log_probs"], item["choices"], strict=True)]
        assert item["answer_normalised"] == int(np.argmax(per_character))
    assert evaluation.scores["accuracy"] == np.mean([item["answer"] == item["gold"] for item in evaluation.items])


def test_perplexity_and_divergence_are_those_of_whole_forward_passes(model, tmp_path):
    texts = [sentence(i, 5 + i) for i in range(4)]
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(texts))
    edit, lens = fitted(model), Lens.of(model)
    losses, divergences, tokens, size = 0.0, 0.0, 0, 0
    for text in texts:
        ids = torch.tensor([encode(lens, text)])
        before = lens.forward(ids, torch.ones_like(ids))[0, :-1].double().log_softmax(-1)
        with edit.applied(model):
            after = lens.forward(ids, torch.ones_like(ids))[0, :-1].double().log_softmax(-1)
        losses -= after.gather(1, ids[0, 1:, None]).sum().item()
        divergences += (before.exp() * (before - after)).sum().item()
        tokens, size = tokens + ids.shape[1] - 1, size + len(text)
    found = sl.evaluate(model, "perplexity", path, edit=edit, progress=False).scores
    assert found["perplexity"] == pytest.approx(math.exp(losses / tokens), rel=1e-5)
    assert found["kl"] == pytest.approx(divergences / tokens, rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(losses / math.log(2) / size, rel=1e-5)
    assert found["kl"] > 1e-4
    assert sl.evaluate(model, "perplexity", path, progress=False).scores["kl"] == 0.0


def test_gsm8k_is_solved_by_a_model_that_says_the_number(model, tmp_path):
    path = write(tmp_path / "maths.jsonl", [{"question": sentence(i, 4), "answer": f"so\n#### {i}"} for i in range(3)])
    evaluation = sl.evaluate(model, "capability", path, max_new_tokens=4, progress=False)
    assert evaluation.benchmark.name == "gsm8k"
    for item in evaluation.items:
        said = final_number(item["generated"])
        assert item["exact_match"] == float(said is not None and str(said) == item["gold"])
        prompt = f"Question: {item['question']}\nAnswer:"
        assert sl.generate(model, prompt, max_new_tokens=4)[0].startswith(item["generated"])


def test_every_method_runs_in_a_benchmark_as_in_whole_forward_passes(model, choices):
    from tiny import demonstrations

    from sea_lens.measure.spans import Span, completion_spans

    lens, demos = Lens.of(model), demonstrations()
    covariance = sl.capture(model, demos, progress=False)
    for edit in (
        sl.mean_difference(covariance),
        sl.iti(model, demos, heads=3, progress=False),
        sl.leace(model, demos, progress=False),
        sl.dola(model, relative_top=0),
        sl.randomised(fitted(model), seed=0),
    ):
        found = sl.evaluate(model, "capability", choices, edit=edit, progress=False)
        item = found.items[4]
        for choice, value in zip(item["choices"], item["log_probs"], strict=True):
            (span,) = completion_spans(lens, item["query"], [f" {choice}"])[0].spans
            assert isinstance(span, Span)
            tokens = torch.tensor([span.tokens])
            with edit.applied(model), sl.prompt_lengths(model, span.prompt_length), torch.no_grad():
                scores = lens.forward(tokens, torch.ones_like(tokens))[0].double().log_softmax(-1)
            expected = sum(scores[i - 1, tokens[0, i]].item() for i in range(span.start, tokens.shape[1]))
            assert value == pytest.approx(expected, abs=1e-4)


def test_dola_that_leaves_tokens_out_generates_but_does_not_score(model, choices, tmp_path):
    path = write(tmp_path / "maths.jsonl", [{"question": sentence(1, 4), "answer": "#### 1"}])
    edit = sl.dola(model)
    with pytest.raises(sl.InputError, match="relative_top=0"):
        sl.evaluate(model, "capability", choices, edit=edit, progress=False)
    assert len(sl.evaluate(model, "gsm8k", path, edit=edit, max_new_tokens=3, progress=False).items) == 1


# --- Evaluation and comparison --------------------------------------------------------------------------------------


def test_an_evaluation_under_an_edit_leaves_the_model_as_it_was(model, choices):
    edit = fitted(model)
    before = sl.evaluate(model, "capability", choices, progress=False)
    after = sl.evaluate(model, "capability", choices, edit=edit, strength=1.5, progress=False)
    again = sl.evaluate(model, "capability", choices, progress=False)
    assert [item["log_probs"] for item in again.items] == [item["log_probs"] for item in before.items]
    assert [item["log_probs"] for item in after.items] != [item["log_probs"] for item in before.items]
    nothing = sl.evaluate(model, "capability", choices, edit=edit, strength=0.0, progress=False)
    assert nothing.scores == before.scores


def test_comparisons_are_paired(model, choices):
    before = sl.evaluate(model, "capability", choices, progress=False)
    edited = [{**item, "accuracy": 1.0} for item in before.items]
    after = sl.Evaluation(before.benchmark, edited, before.provenance)
    comparison = sl.compare(before, after)
    # The difference of each item is known exactly, and so is what its paired interval is.
    differences = np.array([1.0 - item["accuracy"] for item in before.items])
    interval = comparison.intervals["accuracy"]
    assert interval == sl.bootstrap(differences, kind="difference")
    same = sl.compare(before, before, controls=[after])
    assert same.intervals["accuracy_normalised"].mean == 0.0
    assert same.intervals["accuracy_normalised"].low < 0 < same.intervals["accuracy_normalised"].high
    assert same.to_frame().loc["accuracy", "control_high"] == pytest.approx(differences.mean())
    assert len(comparison.plot().get_yticklabels()) == 2


def test_evaluations_of_other_items_are_not_compared(model, choices, tmp_path):
    whole = sl.evaluate(model, "capability", choices, progress=False)
    with pytest.raises(sl.MismatchError, match="other items: 10 and 4"):
        sl.compare(whole, sl.evaluate(model, "capability", choices, limit=4, progress=False))
    rows = [json.loads(line) for line in choices.read_text().splitlines()]
    other = write(tmp_path / "other.jsonl", [{**row, "gold": 0} for row in rows])
    with pytest.raises(sl.MismatchError, match="other data"):
        sl.compare(whole, sl.evaluate(model, "capability", other, progress=False))


def test_an_evaluation_comes_back_from_its_file(model, choices, tmp_path):
    evaluation = sl.evaluate(model, "capability", choices, progress=False)
    evaluation.save(tmp_path / "e.json")
    loaded = sl.Evaluation.load(tmp_path / "e.json")
    assert loaded.items == evaluation.items
    assert loaded.intervals == evaluation.intervals
    pd.testing.assert_frame_equal(loaded.to_frame(), evaluation.to_frame())
    assert loaded.provenance["prompt"]["prompt"] == "{query}"
    renamed = sl.evaluate(model, "capability", choices.rename(tmp_path / "renamed.jsonl"), progress=False)
    assert sl.compare(loaded, renamed).intervals["accuracy"].mean == 0
    own = sl.evaluate(model, Own(), tmp_path / "renamed.jsonl", progress=False)
    own.save(tmp_path / "own.json")
    assert sl.Evaluation.load(tmp_path / "own.json", Own()).scores == evaluation.scores
    for path, benchmark, name in (("own.json", None, "own"), ("e.json", Own(), "capability")):
        with pytest.raises(sl.FileError, match=f"results of the benchmark '{name}': expected it as `benchmark`"):
            sl.Evaluation.load(tmp_path / path, benchmark)
    with pytest.raises(sl.FileError, match=r"missing.json: No such file"):
        sl.Evaluation.load(tmp_path / "missing.json")
    (tmp_path / "no.json").write_text('{"scores": {}}')
    with pytest.raises(sl.FileError, match="no evaluation"):
        sl.Evaluation.load(tmp_path / "no.json")


def test_the_default_prompt_of_questions_asks_for_an_answer(model, tmp_path):
    path = write(tmp_path / "q.jsonl", [{"query": "Question: w1 ?", "choices": ["w1", "w2"], "gold": 0}])
    default, chosen = Task.read("capability", path).template, Task.read("capability", path, prompt="query").template
    assert default is not None
    assert default.name == "query_answer"
    assert chosen is not None
    assert chosen.name == "query"


class Own(Capability):
    """A benchmark of one's own."""

    name = "own"


def test_where_an_edit_acts_may_be_said_with_any_numbers(model, choices, tmp_path):
    edit = fitted(model)
    wanted = sl.evaluate(model, "capability", choices, edit=edit, layers=[0, 1], strength=0.5, progress=False)
    for layers in (range(2), np.array([0, 1]), {0, 1}, (layer for layer in (0, 1)), [np.int64(0), 1]):
        found = sl.evaluate(
            model, "capability", choices, edit=edit, layers=layers, strength=np.float32(0.5), progress=False,
            journal=tmp_path / "journal",
        )  # fmt: skip
        found.save(tmp_path / "found.json")
        assert sl.Evaluation.load(tmp_path / "found.json").items == wanted.items
    assert found.provenance["edit"]["strength"] == {0: 0.5, 1: 0.5}
    assert found.provenance["edit"]["combine"] is None


class Dying(Capability):
    """Capability that is interrupted at its third part."""

    asked = 0

    def ask(self, asker, items):
        self.asked += 1
        if self.asked == 3:
            raise KeyboardInterrupt
        return super().ask(asker, items)


def test_an_evaluation_that_was_killed_goes_on_and_ends_the_same(model, choices, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "PART", 3)
    journal = tmp_path / "journal"
    whole = sl.evaluate(model, "capability", choices, progress=False)
    with pytest.raises(KeyboardInterrupt):
        sl.evaluate(model, Dying(), choices, journal=journal, progress=False)
    # Cut in the middle of what was written last, as by a power failure.
    journal.write_bytes(journal.read_bytes()[:-20])
    counting = Dying()
    counting.asked = 3
    resumed = sl.evaluate(model, counting, choices, journal=journal, progress=False)
    assert counting.asked - 3 == 3
    assert resumed.items == whole.items
    assert resumed.scores == whole.scores
    idle = Dying()
    assert sl.evaluate(model, idle, choices, journal=journal, progress=False).items == whole.items
    assert idle.asked == 0


@pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")
def test_a_journal_of_something_else_is_refused(model, choices, tmp_path):
    journal, edit = tmp_path / "journal", fitted(model)
    sl.evaluate(model, "capability", choices, journal=journal, progress=False)
    with pytest.raises(sl.MismatchError, match=r"another evaluation \(other edit\)"):
        sl.evaluate(model, "capability", choices, edit=edit, journal=journal, progress=False)
    with pytest.raises(sl.MismatchError, match="data"):
        sl.evaluate(model, "capability", choices, limit=3, journal=journal, progress=False)
    # What stands in the model already belongs to what is evaluated.
    for other in (edit, sl.in_context(model, demonstrations(), 1, " ")):
        with other.applied(model), pytest.raises(sl.MismatchError, match="other model"):
            sl.evaluate(model, "capability", choices, journal=journal, progress=False)
    foreign = tmp_path / "notes.txt"
    for content in (choices.read_text(), "a line without an end", '{"evaluation": 5}\n', '{"evaluation": []}\n{'):
        foreign.write_text(content)
        with pytest.raises((sl.FileError, sl.MismatchError)):
            Journal(foreign, {"data": 1})
        assert foreign.read_text() == content


def test_adapters_are_told_apart_in_the_middle_of_their_weights(model):
    edit = sl.lora(model, demonstrations(), epochs=1, layers=[1], progress=False)
    adapter = edit.adapters[1]
    other = adapter.down.clone()
    other[other.shape[0] // 2, other.shape[1] // 2] += 1e-3
    changed = replace(edit, adapters={1: replace(adapter, down=other)})
    assert edit_identity(edit) != edit_identity(changed)
    assert len(edit_identity(edit)["options"]) < 200


def test_a_late_row_that_cannot_be_scored_is_named_with_its_file(model, choices, tmp_path, monkeypatch):
    rows = [json.loads(line) for line in choices.read_text().splitlines()]
    prompt = sl.PromptTemplate("bare", "{query}", completion="{answer}")
    path = write(tmp_path / "late.jsonl", [*rows, {**rows[0], "choices": ["w1", "\u200b \u200b"]}])
    task = Task.read("capability", path, prompt=prompt)
    item = replace(task.items[-1], answers=("w1", " "))
    with pytest.raises(sl.DemonstrationError, match=r"late.jsonl, row 11, answer 1, adds no token"):
        sl.evaluate(model, replace(task, items=(*task.items[:-1], item)), progress=False)
    with pytest.raises(sl.FileError, match=r"half.jsonl, row 2: holds half a character"):
        Task.read("capability", write(tmp_path / "half.jsonl", [rows[0], {**rows[0], "choices": ["a", "\ud800"]}]))


def test_a_model_that_drops_out_units_is_refused(load_tiny, choices):
    model = load_tiny("gpt2", "bridge")
    model.train()
    try:
        with pytest.raises(sl.InputError, match="expected one in evaluation mode"):
            sl.evaluate(model, "capability", choices, progress=False)
    finally:
        model.eval()


def test_scores_that_are_nowhere_defined_have_no_interval():
    evaluation = sl.Evaluation(BBQ(), [bbq_row("disambiguated", "neg", 2) | {"row": 1}] * 3, {})
    assert np.isnan(evaluation.intervals["s_dis/disambiguated"].low)
    assert evaluation.intervals["accuracy"].high == 1.0


# --- Wrong input ----------------------------------------------------------------------------------------------------

TRUTHFUL = {"question": "q", "mc1_targets": {"a": 1, "b": 0}, "mc2_targets": {"a": 1, "b": 0}}
STEREOTYPE = {
    "context": "c", "question": "q", "ans0": "a", "ans1": "b", "ans2": "c", "label": 0, "category": "Age",
    "question_polarity": "neg", "context_condition": "ambig",
    "answer_info": {"ans0": ["a", "old"], "ans1": ["b", "nonOld"], "ans2": ["c", "unknown"]},
    "additional_metadata": {"stereotyped_groups": ["old"]},
}  # fmt: skip
CHOICE = {"query": "q", "choices": ["a", "b"], "gold": 0}
SOLUTION = {"question": "q", "answer": "#### 3"}
WRONG = [
    ("truthfulqa", TRUTHFUL, {"mc1_targets": None}, "mc1_targets must map"),
    ("truthfulqa", TRUTHFUL, {"mc2_targets": {"a": 1}}, "a true and a false answer"),
    ("truthfulqa", TRUTHFUL, {"mc2_targets": {"a": 1, " ": 0}}, "empty answer"),
    ("truthfulqa", TRUTHFUL, {"mc2_targets": {"a": 1, "b": 2}}, "1 .true. and 0 .false."),
    ("truthfulqa", TRUTHFUL, {"question": ""}, "'question' must be a non-empty text"),
    ("bbq", STEREOTYPE, {"label": 3}, "'label' must be one of"),
    ("bbq", STEREOTYPE, {"label": True}, "'label' must be one of"),
    ("bbq", STEREOTYPE, {"context_condition": "both"}, "'context_condition' must be one of"),
    ("bbq", STEREOTYPE, {"ans1": " "}, "'ans1' must be a non-empty text"),
    ("bbq", STEREOTYPE, {"answer_info": {}}, "'answer_info'"),
    ("bbq", STEREOTYPE, {"answer_info": {**STEREOTYPE["answer_info"], "ans0": []}}, "'answer_info' .*expected a list"),
    ("bbq", STEREOTYPE, {"additional_metadata": {"stereotyped_groups": "g1"}}, "'stereotyped_groups' .*got 'g1'"),
    ("bbq", STEREOTYPE, {"category": "\ud800"}, "half a character"),
    ("bbq", STEREOTYPE, {"answer_info": {f"ans{i}": ["a", "old"] for i in range(3)}}, "one answer of group 'unknown'"),
    ("capability", CHOICE, {"gold": 2}, "'gold' must be the number of a choice, 0 to 1, got 2"),
    ("capability", CHOICE, {"gold": "0"}, "'gold' must be"),
    ("capability", CHOICE, {"choices": ["a"]}, "two texts or more"),
    ("capability", CHOICE, {"choices": ["a", ""]}, "empty choice"),
    ("gsm8k", SOLUTION, {"answer": "3"}, "must end in '#### '"),
    ("perplexity", {"text": "t"}, {"text": 5}, "expected a text, or an object with one as 'text', got"),
]


@pytest.mark.parametrize(("benchmark", "good", "wrong", "message"), WRONG)
def test_a_malformed_row_is_refused_by_file_and_row(tmp_path, benchmark, good, wrong, message):
    path = write(tmp_path / "data.jsonl", [good, good, {**good, **wrong}])
    with pytest.raises(sl.FileError, match=rf"data.jsonl, row 3: .*{message}"):
        Task.read(benchmark, path)
    # A malformed row beyond the limit is one too.
    with pytest.raises(sl.FileError, match="row 3"):
        Task.read(benchmark, path, limit=1)
    missing = {name: value for name, value in good.items() if name not in wrong}
    with pytest.raises(sl.FileError, match="row 2"):
        Task.read(benchmark, write(path, [good, missing]))


@pytest.mark.parametrize(("benchmark", "good"), [("truthfulqa", TRUTHFUL), ("bbq", STEREOTYPE), ("capability", CHOICE)])
def test_files_of_other_systems_are_read_and_broken_ones_refused(tmp_path, benchmark, good):
    path = tmp_path / "data.jsonl"
    line = json.dumps(good).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line + b"\r\n")
    task = Task.read(benchmark, path)
    assert len(task.items) == 2
    assert task.items[0].fields == task.items[1].fields
    for content, message in (
        (line + b"\n{broken\n", "row 2: not JSON"),
        (line + b"\n\xef\xbb\xbf" + line, "row 2: not JSON"),
        (line + b"\n[1]\n", "row 2: expected a JSON object"),
        (b"", "has no rows"),
        (b"\xff\xfe", "not a UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(sl.FileError, match=message):
            Task.read(benchmark, path)


def test_a_malformed_table_is_refused_by_file_and_row(tmp_path):
    path = tmp_path / "pairs.csv"
    header = ",sent_more,sent_less,stereo_antistereo,bias_type\n"
    path.write_text(header + "0,a,b,stereo,age\n1,a,b,sideways,age\n")
    with pytest.raises(sl.FileError, match="row 2: field 'stereo_antistereo'"):
        Task.read("crows_pairs", path)
    path.write_text(header + "0,a,b,stereo,age\n1,a,,stereo,age\n")
    with pytest.raises(sl.FileError, match="row 2: field 'sent_less'"):
        Task.read("crows_pairs", path)
    path.write_text(header + "0,a,b\n")
    with pytest.raises(sl.FileError, match="row 1: expected 5 fields"):
        Task.read("crows_pairs", path)
    path.write_text(header.replace("bias_type", "sent_more") + "0,a,b,stereo,age\n")
    with pytest.raises(sl.FileError, match="two columns are called 'sent_more'"):
        Task.read("crows_pairs", path)
    path.write_text(header + f"0,{'long ' * 40_000},b,stereo,age\n")
    assert len(Task.read("crows_pairs", path).items) == 1
    path.write_bytes(b"\xef\xbb\xbf" + header.replace("\n", "\r\n").encode() + b"0,a,b,stereo,age\r\n")
    assert Task.read("crows_pairs", path).items[0].facts["bias_type"] == "age"


def test_wrong_arguments_are_refused_before_any_work(model, choices, monkeypatch):
    edit = fitted(model)
    monkeypatch.setattr(running, "tracked", None)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"benchmark": "nosuch"}, "unknown benchmark 'nosuch': expected one of truthfulqa, bbq"),
        ({"benchmark": "perplexity", "prompt": "qa"}, "takes no prompt"),
        ({"prompt": "qa"}, r"must use some of \['query'\]"),
        ({"chat": True}, "has none"),
        ({"prompt": sl.PromptTemplate("p", "{query}", stop=("",))}, "stops at an empty text"),
        ({"limit": 0}, "limit 0: expected at least 1"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"edit": edit, "layers": "nosuch"}, "nosuch"),
        ({"edit": edit, "combine": "nosuch"}, "nosuch"),
        ({"path": None}, "needs its file"),
        ({"path": "hf:nosuch"}, "expected hf:owner/name"),
        ({"benchmark": Task.read("capability", choices)}, "has its path"),
    ]
    for arguments, message in wrong:
        given = {"benchmark": "capability", "path": choices} | arguments
        with pytest.raises(sl.InputError, match=message):
            sl.evaluate(model, **given)


def test_data_from_the_hub_needs_a_network(model):
    # The tests run offline (conftest.py).
    with pytest.raises(sl.FileError, match=r"truthfulqa/truthful_qa cannot be fetched .* give a local file"):
        sl.evaluate(model, "truthfulqa")


def test_rows_as_the_hub_has_them_are_read_too(monkeypatch):
    import datasets

    asked = []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        targets = {"choices": ["a", "b"], "labels": [1, 0]}
        return datasets.Dataset.from_list([{"question": "q", "mc1_targets": targets, "mc2_targets": targets}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = Task.read("truthfulqa")
    assert asked == [(("truthfulqa/truthful_qa", "multiple_choice"), {"split": "validation"})]
    assert task.items[0].answers == ("a", "b")
    assert Task.read("truthfulqa", "hf:some/where:mine:test").source == "hf:some/where:mine:test"
    assert asked[1] == (("some/where", "mine"), {"split": "test"})


class Lines(Capability):
    """A benchmark of one's own, with a data set of its own."""

    name = "lines"
    hub = HubData("some/lines", "mine", "dev")


def test_rows_of_gsm8k_are_gsm8ks_for_capability_but_for_no_benchmark_of_another_name(tmp_path):
    path = write(tmp_path / "maths.jsonl", [SOLUTION])
    assert isinstance(Task.read("capability", path).benchmark, GSM8K)
    assert isinstance(Task.read("capability", path, prompt="worked_answer").benchmark, GSM8K)
    with pytest.raises(sl.FileError, match="row 1: no field 'query'"):
        Task.read(Own(), path)
    # A row that is a choice too stays one.
    both = write(tmp_path / "both.jsonl", [SOLUTION | CHOICE])
    assert type(Task.read("capability", both).benchmark) is Capability


def test_a_benchmark_of_ones_own_brings_its_own_data_set(monkeypatch, choices):
    import datasets

    asked = []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.Dataset.from_list([CHOICE])

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = Task.read(Lines())
    assert asked == [(("some/lines", "mine"), {"split": "dev"})]
    assert (task.source, task.benchmark.name, task.items[0].answers) == ("some/lines", "lines", ("a", "b"))
    # What is given goes before it.
    assert Task.read(Lines(), "hf:other/lines").source == "hf:other/lines"
    assert asked[1] == (("other/lines", None), {"split": "test"})
    assert len(Task.read(Lines(), choices).items) == 10
    with pytest.raises(sl.InputError, match="benchmark 'own' needs its file: give a path, or hf:owner/name"):
        Task.read(Own())
    assert len(asked) == 2


class Numbers(Capability):
    """A benchmark of one's own, whose files are of its own kind: three numbers a line."""

    name = "numbers"

    def rows(self, path):
        for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
            a, b, total = line.split()
            yield number, {"query": f"{a} + {b} =", "choices": [total, "0"], "gold": 0}


def test_a_benchmark_of_ones_own_reads_files_of_its_own_kind(model, tmp_path):
    path = tmp_path / "sums.txt"
    path.write_text("w1 w2 w3\nw4 w5 w9\n")
    task = Task.read(Numbers(), path)
    assert [item.row for item in task.items] == [1, 2]
    assert (task.source, task.items[1].answers) == ("sums.txt", ("w9", "0"))
    assert len(sl.evaluate(model, Numbers(), path, progress=False).items) == 2


def test_a_plain_text_is_one_text_for_perplexity_and_nothing_for_the_others(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("a query and a Question;\n\nin a context\n")
    (item,) = Task.read("perplexity", path).items
    assert (item.row, item.fields) == (1, {"text": path.read_text()})
    for name in BENCHMARKS.keys() - {"perplexity"}:
        with pytest.raises(sl.FileError) as refused:
            Task.read(name, path)
        assert str(refused.value) == (
            f"{path}: benchmark {name!r} reads no plain text: expected JSON Lines, .json or .csv"
        )


@pytest.mark.parametrize("module", ["evaluation/run", "evaluation/hub", "evaluation/benchmark", "cli/evaluation"])
def test_what_runs_benchmarks_knows_none_by_name(module):
    tree = ast.parse((Path(sl.__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
    # Examples in docstrings may name one.
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    source = ast.unparse(tree).casefold()
    names = {name.casefold() for one in BENCHMARKS.values() for name in (one.name, one.__name__)}
    assert len(names) >= 6
    assert not {name for name in names if name in source}


# --- Real files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("benchmark", "name", "n"),
    [
        ("truthfulqa", "truthfulqa/mc_task.json", 817),
        ("truthfulqa", "truthfulqa/TruthfulQA.csv", 817),
        ("bbq", "bbq/disambig_validation.jsonl", 4000),
        ("bbq", "bbq/Age.jsonl", 3680),
        ("bbq", "bbq/Religion.jsonl", 1200),
        ("crows_pairs", "crows_pairs/crows_pairs_anonymized.csv", 1508),
        ("capability", "capability/arc_easy.jsonl", 2376),
        ("capability", "capability/piqa.jsonl", 1838),
        ("capability", "capability/copa.jsonl", 100),
        ("gsm8k", "capability/gsm8k_test.jsonl", 1319),
        ("perplexity", "text/tinystories_1000.json", 1000),
    ],
)
def test_the_real_files_are_read_whole(shared, benchmark, name, n):
    items = Task.read(benchmark, shared / "data" / name).items
    assert [item.row for item in items] == list(range(1, n + 1))
    if benchmark == "bbq":
        named = sum(item.facts["target"] is not None for item in items) / n
        assert named > 0.8 if "disambig" in name else named == 1


def test_a_real_model_answers_real_questions(shared, backend):
    model = sl.load_model(str(shared / "models" / "stories260K"), backend, device="cpu")
    data = shared / "data"
    found = sl.evaluate(model, "truthfulqa", data / "truthfulqa" / "mc_task.json", limit=3, progress=False)
    assert 0 < found.scores["mc2"] < 1
    assert found.provenance["prompt"]["name"] == "truthfulqa"
    pairs = sl.evaluate(
        model, "crows_pairs", data / "crows_pairs" / "crows_pairs_anonymized.csv", limit=5, progress=False
    )
    assert all(item["log_prob_more"] < 0 for item in pairs.items)


def test_scores_are_reported_to_whoever_asks(model, tmp_path):
    rows = [
        {"query": sentence(i, 4), "choices": [sentence(50 + i, 1), sentence(90 + i, 2)], "gold": i % 2}
        for i in range(6)
    ]
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told: list[Any] = []
    found = sl.evaluate(model, "capability", path, progress=False, report=told.append)
    assert told == [{f"capability/{name}": value for name, value in found.scores.items()}]
    task = sl.Task.read("capability", path)
    trials: list[Any] = []
    grid: dict[str, Any] = {"energies": (0.9,), "centres": (False,), "strengths": (0.5, 1.0)}
    tuned = sl.tune(model, demonstrations(), task, maximise="accuracy", **grid, progress=False, report=trials.append)
    assert [one["strength"] for one in trials] == [0.5, 1.0]
    assert [one["accuracy"] for one in trials] == tuned.table["accuracy"].tolist()
