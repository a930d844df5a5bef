"""Logits are made only where they count, in parts of the vocabulary, and are those of the model."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import N_CTX, Largest, contrasts, fitted, save_random_weights, tokens

import sea_lens as sl
from sea_lens.measure.scorer import contrast_scorer
from sea_lens.measure.shared_prompts import log_probs
from sea_lens.measure.spans import completion_spans
from sea_lens.models import predictions
from sea_lens.models.cache import Past
from sea_lens.models.lens import Lens
from sea_lens.models.predictions import Predictions, predict
from sea_lens.models.sites import SITES
from sea_lens.models.unembedding import Unembedding

sys.path.insert(0, str(Path(__file__).parents[1] / "analyses"))
from zoo_models import CASES

pytestmark = pytest.mark.model
TOKENS = tokens(3, 9)
MASK = torch.ones_like(TOKENS)
ROW, POSITION = torch.arange(3).repeat_interleave(8), torch.arange(8).repeat(3)
NEXT = TOKENS[:, 1:].flatten()


def everywhere(lens: Lens) -> torch.Tensor:
    """Log-probabilities from logits at every position."""
    return lens.forward(TOKENS, MASK)[ROW, POSITION].float().log_softmax(-1)[torch.arange(len(NEXT)), NEXT]


def where_they_count(lens: Lens) -> torch.Tensor:
    return predict(lens, TOKENS, MASK).log_probs(ROW, POSITION, NEXT)


def assert_the_same(lens: Lens) -> None:
    with torch.no_grad():
        assert torch.allclose(where_they_count(lens), everywhere(lens), atol=1e-5)


@pytest.fixture(params=["gemma2 cap 5", "granite multipliers", "phi", "gpt2", "cohere logit_scale 0.5"])
def odd_model(request, backend, tmp_path):
    """Models with a soft cap, scaled logits, a bias, tied weights."""
    (case,) = (case for case in CASES if case.name == request.param)
    try:
        return sl.load_model(case.write(tmp_path / "model"), backend)
    except sl.UnsupportedModelError:
        pytest.skip("this backend computes another model")


@pytest.fixture
def wide(tmp_path, backend):
    """A model of many tokens, and how many."""
    from transformers.models.llama.configuration_llama import LlamaConfig

    from sea_lens.testbed.tokenizer import word_tokenizer

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=6000, num_attention_heads=2, max_position_embeddings=N_CTX, **sizes)
    save_random_weights(config, tmp_path, 0.15)
    word_tokenizer([f"w{number}" for number in range(5996)], N_CTX).save_pretrained(tmp_path)
    return sl.load_model(tmp_path, backend), 6000


def test_log_probabilities_are_those_of_logits_everywhere(any_model):
    lens = Lens.of(any_model)
    assert Unembedding.of(lens) is not None
    assert_the_same(lens)
    with torch.no_grad():
        found, whole = predict(lens, TOKENS, MASK), lens.forward(TOKENS, MASK)
        assert torch.allclose(found.whole(), whole, atol=1e-5)
        assert torch.allclose(found.logits(ROW, POSITION), whole[ROW, POSITION], atol=1e-5)
        assert torch.allclose(found.last(), whole[:, -1], atol=1e-5)
        _, best = found.scores(ROW, POSITION, whole[ROW, POSITION].argmax(-1))
        assert best.all()
        _, best = found.scores(ROW, POSITION, whole[ROW, POSITION].argmin(-1))
        assert not best.any()


def test_soft_caps_scales_and_biases_are_the_models_own(odd_model):
    lens = Lens.of(odd_model)
    found = Unembedding.of(lens)
    assert found is not None
    config = odd_model.original_model.config if hasattr(odd_model, "original_model") else None
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        assert found.cap == pytest.approx(cap)
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        assert found.scale == pytest.approx(1 / scaling)
    assert_the_same(lens)


@pytest.mark.parametrize("site", SITES)
def test_edits_act_before_the_unembedding(model, site):
    edit, lens = fitted(model, site=site), Lens.of(model)
    with torch.no_grad():
        plain = where_they_count(lens)
        with edit.applied(model, strength=1.5):
            assert_the_same(lens)
            assert (where_they_count(lens) - plain).abs().max() > 1e-3


def test_in_16_bits_logits_round_as_the_models_own(load_tiny, backend):
    lens = Lens.of(load_tiny("llama", backend, torch.bfloat16))
    assert Unembedding.of(lens) is not None
    with torch.no_grad():
        whole = lens.forward(TOKENS, MASK).float()
        assert (predict(lens, TOKENS, MASK).whole() - whole).abs().max() <= 2.0**-8 * whole.abs().max()


def test_what_changes_all_logits_has_them_whole(model):
    lens, edit = Lens.of(model), sl.dola(model, relative_top=0.0)
    with torch.no_grad():
        plain = where_they_count(lens)
        with edit.applied(model):
            assert Unembedding.of(lens) is None
            assert_the_same(lens)
            assert (where_they_count(lens) - plain).abs().max() > 1e-3
        assert torch.equal(where_they_count(lens), plain)


@contextlib.contextmanager
def at_point(model: Any, name: str):
    with model.hooks(fwd_hooks=[(name, lambda x, hook: 2 * x)]):
        yield


@contextlib.contextmanager
def at_module(module: Any, change: Callable[[Any], Any]):
    handle = module.register_forward_hook(lambda _module, _given, output: change(output))
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def in_place_of_forward(module: Any):
    own = module.forward

    def forward(*args, **kwargs):
        output = own(*args, **kwargs)
        logits = output if isinstance(output, torch.Tensor) else output.logits
        # A number for each token, which no scale and no cap can be.
        logits += torch.linspace(0, 3, logits.shape[-1])
        return output

    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]


@pytest.mark.filterwarnings("ignore:A forward hook edited hook_scale")
def test_hooks_of_a_users_own_still_act(model):
    lens = Lens.of(model)
    inside = getattr(model, "original_model", model)
    contexts = {
        "norm": lambda: at_point(model, "ln_final.hook_normalized"),
        "out": lambda: at_point(model, "unembed.hook_out"),
        "in": lambda: at_point(model, "unembed.hook_in"),
        "module": lambda: at_module(model.unembed, lambda logits: 2 * logits),
        "forward": lambda: in_place_of_forward(inside),
    }
    with torch.no_grad():
        plain = where_they_count(lens)
        for name, context in contexts.items():
            with context():
                assert (where_they_count(lens) - plain).abs().max() > 1e-3, name
                assert_the_same(lens)
            assert torch.equal(where_they_count(lens), plain)


def test_new_weights_are_the_ones_that_are_used(backend, model_folders):
    model = sl.load_model(str(model_folders["llama"]), backend)
    lens = Lens.of(model)
    with torch.no_grad():
        plain = where_they_count(lens)
        lens.unembedding.mul_(1.5)
        assert (where_they_count(lens) - plain).abs().max() > 1e-3
        assert_the_same(lens)
        parameter = next(model.unembed.parameters())
        parameter.data = parameter.data * 2
        assert_the_same(lens)


@pytest.mark.parametrize("together", [512, 3])
def test_gradients_are_those_of_logits_everywhere(model, monkeypatch, together):
    lens = Lens.of(model)
    # Several parts of the vocabulary, each computed once more in the backward pass.
    monkeypatch.setattr(predictions, "_TOGETHER", together)
    parts = [(0, 20), (20, 41), (41, 64)]
    monkeypatch.setattr(predictions, "vocabulary_parts", lambda n, d_vocab, device: iter(parts))

    def slope(function):
        kept = []

        def record(x):
            kept.append(x.detach().requires_grad_())
            return kept[-1]

        with lens.hooks([(lens.point("mlp_out", 1), record)]):
            return torch.autograd.grad(function(lens).sum(), kept)[0]

    whole, found = slope(everywhere), slope(where_they_count)
    assert whole.abs().max() > 1e-3
    assert torch.allclose(found, whole, atol=1e-5 * float(whole.abs().max()))


def test_contributions_close_as_with_logits_everywhere(model):
    edit = fitted(model)
    assert sl.layer_contributions(model, edit, contrasts()).closure_error < 1e-3
    direct = sl.head_contributions(model, edit, contrasts(4), method="direct")
    assert direct.closure_error < 1e-3


def test_no_large_logits_are_made(wide):
    model, d_vocab = wide
    lens = Lens.of(model)
    prompts = [" ".join(f"w{30 * i + j}" for j in range(30)) for i in range(8)]
    items = sl.Contrasts([sl.Contrast(prompt, " w5", " w6") for prompt in prompts])
    scorer = contrast_scorer(model, items)
    spans = [span for text in prompts for one in completion_spans(lens, text, [" w5", " w6 w7"]) for span in one.spans]
    of_spans = [i // 2 for i in range(len(spans))]
    asked: list[Callable[[], object]] = [
        scorer.log_probs,
        lambda: log_probs(lens, spans, of_spans),
        lambda: sl.generate(model, prompts, max_new_tokens=2),
    ]
    for ask in asked:
        # The model is measured when it is first asked.
        ask()
        with Largest() as largest:
            ask()
        assert 0 < largest.numbers <= 8 * 30 * d_vocab // 10
    with torch.no_grad(), Largest() as largest:
        lens.forward(scorer.batches[0].tokens, scorer.batches[0].mask)
    assert largest.numbers >= 8 * 30 * d_vocab


def test_what_nobody_asks_for_is_not_made(wide):
    model, d_vocab = wide
    lens = Lens.of(model)
    text = torch.arange(10, 40)[None]
    Past(lens, 1).extended(text)
    with Largest() as largest:
        past = Past(lens, 1).extended(text)
    assert largest.numbers < 30 * d_vocab // 10
    found, _ = past.predict(torch.tensor([[50, 51]]))
    with torch.no_grad():
        whole = lens.forward(torch.cat([text, torch.tensor([[50, 51]])], 1), torch.ones(1, 32, dtype=torch.int64))
    assert torch.allclose(found.whole(), whole[:, -2:], atol=1e-4)


def test_many_positions_of_a_large_vocabulary_are_made_in_parts():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20_000, 8, generator=generator)
    for cap in (None, 4.0):
        unembedding = Unembedding(weight, torch.randn(20_000, generator=generator), 0.5, cap)
        states = torch.randn(2, 300, 8, generator=generator)
        found = Predictions(states, unembedding)
        row, position = torch.arange(2).repeat_interleave(300), torch.arange(300).repeat(2)
        token = torch.randint(20_000, (600,), generator=generator)
        with Largest() as largest:
            values = found.log_probs(row, position, token)
            other = Predictions(1.1 * states, unembedding)
            divergence = found.divergence(other, row, position)
        assert largest.numbers <= 2**21
        whole = found.whole()[row, position].double().log_softmax(-1)
        assert torch.allclose(values.double(), whole.gather(1, token[:, None])[:, 0], atol=1e-5)
        against = other.whole()[row, position].double().log_softmax(-1)
        assert torch.allclose(divergence, (whole.exp() * (whole - against)).sum(-1), atol=1e-5)
        assert not found.divergence(found, row, position).any()


def test_answers_that_begin_alike_are_predicted_once_and_score_as_alone(model):
    lens = Lens.of(model)
    answers = [" w5 w6 w7", " w5 w6 w8 w9", " w5", " w10 w6"]
    fitted_to = completion_spans(lens, "w1 w2 w3 w4", answers)
    spans = [span for one in fitted_to for span in one.spans]
    together = log_probs(lens, spans, [0] * 4)
    alone = torch.cat([log_probs(lens, [span], [0]) for span in spans])
    assert torch.allclose(together, alone, atol=1e-5)
