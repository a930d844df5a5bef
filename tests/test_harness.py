import json
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import demonstrations, fitted, sentence

import sea_lens as sl
from sea_lens.measure.shared_prompts import log_probs
from sea_lens.measure.spans import completion_spans, text_spans
from sea_lens.models.lens import Lens

lm_eval = pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]

TASK = """
task: local_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture
def task(tmp_path):
    rows = [
        {"query": sentence(i, 4), "choices": [sentence(50 + i, 1), sentence(90 + i, 1 + i % 3)], "gold": i % 2}
        for i in range(12)
    ]
    data = tmp_path / "choices.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "local_choices.yaml").write_text(TASK.format(path=data))
    return data


def first_odd(ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """Odd places of the prompt, and its last token."""
    places = torch.arange(len(ids))
    return ((places < prompt) & (places % 2 == 1)) | (places == prompt - 1)


@pytest.mark.parametrize("positions", [None, "all", "from_last_prompt", "answer", first_odd])
def test_the_harness_finds_the_log_likelihoods_that_we_find(model, task, positions):
    from lm_eval.tasks import TaskManager

    edit = None if positions is None else fitted(model)
    where: dict[str, Any] = {} if edit is None else {"strength": 1.5, "positions": positions}
    ours = sl.evaluate(model, "capability", task, edit=edit, **where, progress=False)
    theirs = lm_eval.simple_evaluate(
        model=sl.harness_model(model, edit, **where, batch_size=5),
        tasks=["local_choices"],
        task_manager=TaskManager(include_path=str(task.parent), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        verbosity="ERROR",
    )
    samples = sorted(theirs["samples"]["local_choices"], key=lambda sample: sample["doc_id"])
    for item, sample in zip(ours.items, samples, strict=True):
        found = [float(response[0][0]) for response in sample["resps"]]
        assert found == pytest.approx(item["log_probs"], abs=1e-4)
    results = theirs["results"]["local_choices"]
    assert results["acc,none"] == ours.scores["accuracy"]
    assert results["acc_norm,none"] == ours.scores["accuracy_normalised"]


def test_an_edit_changes_what_the_harness_finds_and_leaves_no_trace(model):
    from lm_eval.api.instance import Instance

    def asked(lm):
        request = Instance("loglikelihood", {}, (sentence(1, 4), " w5 w6"), 0)
        return lm.loglikelihood([request], disable_tqdm=True)[0][0]

    plain, changed = sl.harness_model(model), sl.harness_model(model, fitted(model), strength=2.0)
    before = asked(plain)
    assert abs(asked(changed) - before) > 1e-3
    assert asked(plain) == before


def test_generation_in_the_harness_is_ours(model):
    from lm_eval.api.instance import Instance

    edit = fitted(model)
    prompts = [sentence(1, 4), sentence(2, 7)]
    requests = [
        Instance("generate_until", {}, (prompt, {"until": ["w0 w0"], "max_gen_toks": 5}), i)
        for i, prompt in enumerate(prompts)
    ]
    found = sl.harness_model(model, edit).generate_until(requests, disable_tqdm=True)
    assert [text.split() for text in found] == [
        text.split() for text in sl.generate(model, prompts, edit, max_new_tokens=5)
    ]


def test_what_the_model_would_say_itself_is_told_from_what_it_would_not(model):
    from lm_eval.api.instance import Instance

    edit, prompt = fitted(model), sentence(1, 4)
    (said,) = sl.generate(model, [prompt], edit, max_new_tokens=3)
    others = [f" {word}" for word in ("w5", "w6") if said.split()[:1] != [word]]
    requests = [Instance("loglikelihood", {}, (prompt, text), i) for i, text in enumerate([said, *others])]
    found = sl.harness_model(model, edit).loglikelihood(requests, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, *(False for _ in others)]


def test_an_edit_of_another_model_is_refused(model):
    edit = fitted(model)
    other = replace(edit, provenance={"model": {"n_layers": 99}}, _cast={})
    with pytest.raises(sl.MismatchError, match="99 layers"):
        sl.harness_model(model, other)


def test_without_the_harness_it_says_how_to_install_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "sea_lens.evaluation.harness_lm", None)
    with pytest.raises(sl.MissingPackageError, match=r"pip install 'sea-lens\[lm-eval\]'"):
        sl.harness_model(model)


def test_whole_texts_and_long_prompts_are_scored_in_the_harness_as_here(model):
    from lm_eval.api.instance import Instance

    def request(kind, *arguments):
        return [Instance(kind, {}, arguments, 0)]

    text, lens = sentence(3, 10), Lens.of(model)
    (span,) = text_spans(lens, text).spans
    wanted = log_probs(lens, [span], [0]).item()
    (found,) = sl.harness_model(model).loglikelihood_rolling(request("loglikelihood_rolling", text), disable_tqdm=True)
    assert found == pytest.approx(wanted, abs=1e-4)
    # As long as the context holds them, and longer than what examples in front leave of it.
    edit = sl.in_context(model, demonstrations(), 1, " ")
    wheres: list[dict[str, Any]] = [{}, {"edit": edit}]
    for length in (lens.n_ctx - 1, lens.n_ctx + 4):
        prompt = sentence(7, length)
        for where in wheres:
            (theirs,) = sl.harness_model(model, **where).loglikelihood(
                request("loglikelihood", prompt, " w5"), disable_tqdm=True
            )
            with edit.applied(model, strength=1.0 if where else 0.0):
                (fitted_to,) = completion_spans(lens, prompt, [" w5"])
                ours = log_probs(lens, list(fitted_to.spans), [0]).item()
            # What is cut is cut otherwise: ours keeps BOS.
            assert (fitted_to.cut == 0) == (length < lens.n_ctx and not where)
            if fitted_to.cut == 0:
                assert theirs[0] == pytest.approx(ours, abs=1e-4)
        settings = {"until": ["w9"], "max_gen_toks": 4, "do_sample": False}
        assert sl.harness_model(model, edit).generate_until(
            request("generate_until", prompt, settings), disable_tqdm=True
        )
