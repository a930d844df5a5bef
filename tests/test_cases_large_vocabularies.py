"""The check of a model with a large vocabulary: no logits of all tokens of the probe at once, and the same outcome."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import N_CTX, Largest, save_random_weights

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.models.probes import Acting, Compared, whole
from sea_lens.models.reference import Probe, Read, Reference

pytestmark = pytest.mark.model
VOCABULARY, WIDTH = 30_000, 16


@pytest.fixture
def wide(tmp_path, backend):
    from transformers.models.llama.configuration_llama import LlamaConfig

    from sea_lens.testbed.tokenizer import word_tokenizer

    sizes: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=2, max_position_embeddings=N_CTX, **sizes)
    save_random_weights(config, tmp_path, 0.15)
    word_tokenizer([f"w{number}" for number in range(508)], N_CTX).save_pretrained(tmp_path)
    return Lens.of(sl.load_model(tmp_path, backend))


def test_the_check_finds_the_same_without_logits_of_all_tokens_at_once(wide):
    probe = Probe.of(VOCABULARY, wide.n_ctx)
    with torch.no_grad():
        logits = wide.forward(probe.tokens, probe.mask).cpu()
    other = logits.clone()
    # The last token of the vocabulary at the last position of the second text is off, and one at its padding.
    last = int(probe.mask[1].sum()) - 1
    other[1, last, -1] += 0.5
    other[1, -1, 0] += 100
    reference = Reference(other, probe, None, [])
    with Largest() as seen:
        read = whole(wide, probe)
        compared = Compared.of(wide, read, probe, reference)
        kept = Read.of(probe, read)
        acting = Acting.of(wide, probe)
    assert seen.numbers < 64 * VOCABULARY / 2
    kept_tokens = probe.mask.bool()
    expected = ((logits - other)[kept_tokens].abs().max() / other[kept_tokens].abs().max()).item()
    assert compared.bad == 0
    assert compared.deviation == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(kept.logits.cpu(), logits[:, :8], rtol=1e-5, atol=1e-5)
    assert acting.silent == {}


def test_what_is_no_number_is_counted_wherever_it_stands(wide):
    probe = Probe.of(VOCABULARY, wide.n_ctx)
    read = whole(wide, probe)
    states = read.states.clone()
    states[0, 3] = float("nan")
    states[1, -1] = float("nan")
    assert Compared.of(wide, replace(read, states=states), probe, None).bad == VOCABULARY
