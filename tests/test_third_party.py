"""A real model of somebody else's and real data, end to end."""

import pytest
import torch

import sea_lens as sl
from sea_lens.models.load import hooked_available

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def stories(shared):
    backends = ["hooked", "bridge"] if hooked_available() else ["bridge"]
    return {b: sl.load_model(str(shared / "models" / "stories260K"), b) for b in backends}


@pytest.fixture(scope="module")
def halueval(shared):
    return sl.Demonstrations.from_halueval(shared / "data" / "halueval" / "qa_data.jsonl", limit=24)


def test_a_fit_on_halueval_changes_what_the_model_writes(stories, halueval):
    model = stories["bridge"]
    edit = sl.fit(sl.capture(model, halueval, progress=False), rank=(8, 8))
    prompt = "Once upon a time, there was a little"
    before, after = (sl.generate(model, prompt, chosen, max_new_tokens=24)[0] for chosen in (None, edit))
    assert before.startswith(" girl named L")
    assert after != before
    assert sl.generate(model, prompt, max_new_tokens=24)[0] == before


def test_both_backends_give_the_same_numbers(stories, halueval):
    if len(stories) < 2:
        pytest.skip("this TransformerLens has the bridge alone")
    prompts = ["Once upon a time", "One day, Tim and"]
    contrasts = sl.Contrasts(
        [sl.Contrast("Lily was a little", " girl", " boy"), sl.Contrast("The dog was very", " happy", " sad and tired")]
    )
    edits: dict[str, sl.SpectralEdit] = {}
    for site in sl.SITES:
        covariances = {b: sl.capture(model, halueval, site=site, progress=False) for b, model in stories.items()}
        edits = {b: sl.fit(covariance, rank=4) for b, covariance in covariances.items()}
        for layer in edits["bridge"].layers:
            for ours, theirs in zip(
                edits["hooked"].projections(layer), edits["bridge"].projections(layer), strict=True
            ):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
        results = {b: sl.effect(model, edits[b], contrasts) for b, model in stories.items()}
        torch.testing.assert_close(results["hooked"].after_items, results["bridge"].after_items, rtol=0, atol=1e-4)
        texts = {b: sl.generate(model, prompts, edits[b], max_new_tokens=16) for b, model in stories.items()}
        assert texts["hooked"] == texts["bridge"]
    heads = {b: sl.head_contributions(model, edits[b], contrasts) for b, model in stories.items()}
    torch.testing.assert_close(heads["hooked"].values, heads["bridge"].values, rtol=0, atol=1e-4)
    assert heads["bridge"].closure_error < 1e-4
