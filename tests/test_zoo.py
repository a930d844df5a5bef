"""Models of many families, each on every backend: exactly the model of the folder, or refused."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "analyses"))
from zoo import BACKENDS, LIMIT, Outcome, Truth, measure, table
from zoo_models import CASES

pytestmark = pytest.mark.model
# What some TransformerLens or other makes another model of, or cannot make at all.
REFUSED = {
    "hooked": {"llama rope linear", "llama mlp_bias", "qwen2 window 100", "bloom residual behind norm", "bert"},
    "bridge": {"gpt2 no attention scale", "bert", "opt norm behind", "gpt_neox no attention bias", "openai-gpt"},
}


def test_there_are_sixty_configurations_of_twenty_five_families():
    assert len({case.name for case in CASES}) == len(CASES) >= 60
    assert len({case.family for case in CASES}) >= 25


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_a_model_is_exact_whole_cached_and_generated_or_refused(case, tmp_path):
    folder = case.write(tmp_path / "model")
    truth = Truth.of(folder)
    for backend in BACKENDS:
        found = measure(case, folder, backend, truth)
        assert (found.refusal is not None) or found.exact, found
        assert found.check is None or found.check <= LIMIT
        if case.name in REFUSED[backend]:
            assert found.refusal is not None
        elif case.name in ("llama", "gpt2", "gemma2", "qwen3", "mistral window 100", "gpt_neox", "bloom"):
            assert found.refusal is None
        elif case.name in ("llama rope yarn", "mpt", "phi", "granite multipliers", "olmo2", "falcon alibi"):
            assert found.refusal is None or backend == "hooked"


def test_the_table_says_what_is_wrong():
    right = Outcome("a", "a", "bridge", check=1e-6, whole=1e-6, cached=1e-6, generated=True)
    wrong = Outcome("b", "b", "bridge", check=1e-6, whole=1e-6, cached=1e-2, generated=True)
    refused = Outcome("c", "c", "bridge", refusal="model 'm' (bridge): cannot; do something")
    off = Outcome("d", "d", "bridge", refusal="model 'm': logits against the original, relative: 4.0e-01 (expected")
    text = table({"version": [right, wrong, refused, off]})
    assert "| a | 1e-06 |" in text
    assert "| b | 1e-06 **wrong** |" in text
    assert "| c | refused (1) |" in text
    assert "| d | refused: off by 0.4 |" in text
    assert "1. cannot" in text
