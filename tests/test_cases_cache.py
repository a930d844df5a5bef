"""Reading with a cache of keys and values: exact for every family on every supported version, or not done."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VOCABULARY, fitted, save_random_weights, save_tiny_model
from transformers import AutoConfig

import sea_lens as sl
from sea_lens.measure.shared_prompts import log_probs
from sea_lens.measure.spans import Span
from sea_lens.models.cache import Past
from sea_lens.models.cache_probe import cache_deviation, cached_reading, distrust
from sea_lens.models.decoding import continue_prompts
from sea_lens.models.lens import Lens
from sea_lens.models.load import hooked_available
from sea_lens.models.probes import whole
from sea_lens.models.reference import Probe, Read

pytestmark = pytest.mark.model

CONTINUATION = ", there was a little girl named Lily"
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_FEW: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2}
_GPT: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_GEMMA: dict[str, Any] = {**_FEW, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
_FALCON: dict[str, Any] = {**_SIZES, "new_decoder_architecture": False, "multi_query": False, "bias": True}
_LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 16,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _FEW),
    "mistral": ("mistral", {**_FEW, "head_dim": 8, "sliding_window": 8}),
    "gemma": ("gemma", {**_FEW, "head_dim": 16}),
    "gemma2": ("gemma2", _GEMMA),
    "gemma3": ("gemma3_text", _GEMMA),
    "qwen2": ("qwen2", _FEW),
    "qwen3": ("qwen3", {**_FEW, "head_dim": 8}),
    "phi": ("phi", _SIZES),
    "phi3": ("phi3", _FEW),
    "gpt2": ("gpt2", _GPT),
    "gpt-neo": (
        "gpt_neo",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
        },
    ),
    "olmo2": ("olmo2", _FEW),
    "granite": ("granite", _FEW),
    "stablelm": ("stablelm", _FEW),
    "cohere": ("cohere", _FEW),
    "bloom": ("bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "opt": ("opt", {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "pythia": ("gpt_neox", _SIZES),
    "gptj": ("gptj", {**_GPT, "rotary_dim": 4}),
    "falcon": ("falcon", {**_FALCON, "alibi": False, "parallel_attn": True}),
    "falcon-alibi": ("falcon", {**_FALCON, "alibi": True, "parallel_attn": False}),
    "mpt": ("mpt", {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "phi3-longrope": ("phi3", {**_FEW, "original_max_position_embeddings": 16, "rope_parameters": _LONG}),
}


def save(family: str, folder: Path) -> Path:
    """A random model of a family, every part of which matters."""
    save_tiny_model("llama", folder)  # for its tokenizer
    kind, sizes = FAMILIES[family]
    save_random_weights(AutoConfig.for_model(kind, **sizes), folder, 0.3)
    return folder


def load(folder: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        # A model whose own cache is not exact on one of the versions says so.
        warnings.filterwarnings("ignore", ".*does not read with its own cache.*", sl.SeaLensWarning)
        return sl.load_model(folder, "bridge", device="cpu", **options)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny bridge of a family, the same for every test that only reads."""
    root, models = tmp_path_factory.mktemp("families"), {}

    def get(family: str) -> Any:
        if family not in models:
            models[family] = load(save(family, root / family))
        return models[family]

    return get


@pytest.fixture
def fresh(tmp_path):
    """A tiny bridge of a test's own."""
    return lambda family="llama": load(save(family, tmp_path / family))


def alone(lens: Lens, tokens: list[int]) -> torch.Tensor:
    """Logits of a row that is read whole, by itself."""
    row = torch.tensor([tokens])
    with torch.no_grad():
        return lens.forward(row, torch.ones_like(row))[0]


def before_attention(model: Any, change: Any) -> None:
    """Torch hooks before every attention layer that change what it is given by name."""
    for block in model.blocks:
        block.attn.register_forward_pre_hook(lambda module, args, kwargs: (args, change(kwargs)), with_kwargs=True)


def forgotten(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Without any cache."""
    return {name: value for name, value in kwargs.items() if name not in ("cache", "past_key_values", "layer_past")}


def renamed(kwargs: dict[str, Any]) -> dict[str, Any]:
    """With the cache under a name that no bridge looks for, as Transformers does it from 5.24 on."""
    cache = kwargs.get("past_key_values", kwargs.get("cache"))
    return {**forgotten(kwargs), "memory": cache}


def assert_exact(lens: Lens) -> None:
    """Steps of several lengths, with padding on both sides, chosen rows, and two readings on from one past."""
    prompts = [[1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [1, 20, 21], [1, 30, 31, 32, 33, 34]]
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    first, past = Past(lens, 3).read(tokens, mask)
    following = [[40, 41, 42, 43], [44, 45, 46, 47], [48, 49, 50, 51]]
    second, longer = past.read(torch.tensor(following)[:, :3])
    third, _ = longer.read(torch.tensor(following)[:, 3:])
    chosen = [2, 0, 2]
    others = torch.tensor([[52, 53], [54, 0], [55, 56]])
    fourth, _ = past.select(chosen).read(others, torch.tensor([[1, 1], [1, 0], [1, 1]]))
    for row, prompt in enumerate(prompts):
        largest = alone(lens, prompt).abs().max().item()
        whole = torch.cat(
            [alone(lens, [*prompt, *following[row][:3]])[-3:], alone(lens, [*prompt, *following[row]])[-1:]]
        )
        torch.testing.assert_close(first[row, -1], alone(lens, prompt)[-1], rtol=0, atol=1e-4 * largest)
        torch.testing.assert_close(torch.cat([second[row], third[row]]), whole, rtol=0, atol=1e-4 * largest)
    for row, place in enumerate(chosen):
        read = [token for token in others[row].tolist() if token]
        expected = alone(lens, [*prompts[place], *read])[-len(read) :]
        torch.testing.assert_close(fourth[row, : len(read)], expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def assert_greedy(lens: Lens, new_tokens: int = 8) -> None:
    """Continuations of a batch are the most probable tokens of whole readings."""
    prompts = [[1, *range(4, 4 + length)] for length in (3, min(12, lens.n_ctx - new_tokens - 1), 1)]
    found = continue_prompts(lens, prompts, new_tokens, batch_size=3)
    for prompt, continuation in zip(prompts, found, strict=True):
        read = list(prompt)
        for token in continuation:
            assert int(alone(lens, read)[-1].argmax()) == token
            read.append(token)
        assert len(continuation) == new_tokens or int(alone(lens, read)[-1].argmax()) in lens.ends


@pytest.mark.parametrize("backend", ["hooked", "bridge"] if hooked_available() else ["bridge"])
def test_a_real_model_remembers_its_prompt(shared, backend):
    model = sl.load_model(shared / "models" / "stories260K", backend, device="cpu")
    assert sl.generate(model, "Once upon a time", max_new_tokens=10) == [CONTINUATION]
    tokens = model.to_tokens("Once upon a time", prepend_bos=True)
    with warnings.catch_warnings():
        # TransformerLens gives Transformers the cache by its old name.
        warnings.simplefilter("ignore", FutureWarning)
        own = model.generate(tokens, max_new_tokens=10, do_sample=False, verbose=False, return_type="str")
    assert own.endswith(f"Once upon a time{CONTINUATION}")


# The bridge of TransformerLens 3.9 computes another model than Hugging Face of Cohere's, and is refused.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "cohere" or not hooked_available()])
def test_reading_on_is_reading_whole(tiny, family):
    lens = Lens.of(tiny(family))
    assert_exact(lens)
    assert_greedy(lens)
    # The bridge of TransformerLens 3.9 cannot read these two on from a cache.
    if not (hooked_available() and family in ("falcon-alibi", "mpt")):
        deviation = cache_deviation(lens)
        assert deviation is not None
        assert deviation < 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "mpt", "falcon-alibi", "phi3-longrope"])
def test_answers_to_one_prompt_are_scored_as_whole_rows(tiny, family):
    lens = Lens.of(tiny(family))
    common = [1, *range(4, 14)]
    spans, items = [], []
    for item in range(3):
        prompt = [*common, *range(20, 22 + item)]
        for answer in ([30], [31, 32, 33], [34, 35]):
            spans.append(Span((*prompt, *answer), len(prompt)))
            items.append(item)
    expected = []
    for span in spans:
        scores = alone(lens, list(span.tokens[:-1])).log_softmax(-1)
        expected.append(
            sum(scores[place - 1, span.tokens[place]].item() for place in range(span.start, len(span.tokens)))
        )
    torch.testing.assert_close(log_probs(lens, spans, items), torch.tensor(expected).double(), rtol=1e-4, atol=1e-4)


def test_a_cache_under_another_name_is_handed_on(fresh):
    model = fresh()
    for block in model.blocks:
        block.attn._forward_pre_hooks.clear()
        block.attn._forward_pre_hooks_with_kwargs.clear()
    before_attention(model, renamed)
    lens = Lens.of(model)
    lens.cached_readings.clear()
    with pytest.warns(sl.SeaLensWarning, match="own `generate` is only with use_past_kv_cache=False"):
        found = cached_reading(lens)
    assert found.way == "renamed"
    assert found.own is not None
    assert found.own > 0.1
    assert not found.own_is_exact
    assert_exact(lens)
    assert_greedy(lens)
    # Nothing of it stays in the model.
    assert all(len(block.attn._forward_pre_hooks) == 1 for block in model.blocks)


def test_a_cache_that_forgets_is_not_used(fresh):
    model = fresh()
    before_attention(model, forgotten)
    lens = Lens.of(model)
    lens.cached_readings.clear()
    with pytest.warns(sl.SeaLensWarning, match="does not read with its own cache"):
        found = cached_reading(lens)
    assert (found.way, cache_deviation(lens)) == ("whole", None)
    assert_exact(lens)
    assert_greedy(lens)


def test_a_cache_that_begins_to_forget_is_noticed_at_the_next_step(fresh):
    model = fresh()
    lens = Lens.of(model)
    assert cache_deviation(lens) is not None
    first = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 10]])
    _, past = Past(lens, 2).read(first)
    before_attention(model, forgotten)
    logits, past = past.read(torch.tensor([[11, 12], [13, 14]]))
    for row, tokens in enumerate([[1, 5, 6, 7, 11, 12], [1, 8, 9, 10, 13, 14]]):
        torch.testing.assert_close(logits[row], alone(lens, tokens)[-2:], rtol=0, atol=1e-5)
    assert past.state is None
    assert cache_deviation(lens) is None
    assert_exact(lens)


def test_a_cache_that_is_wrong_only_beyond_the_window_is_not_used_there(fresh):
    model = fresh("mistral")

    def disturbed(kwargs: dict[str, Any]) -> dict[str, Any]:
        # Only the first layer: the cache holds what it has read when the second one comes.
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        if cache is not None and cache.get_seq_length(1) == cache.get_seq_length(0) > 7:
            return {**kwargs, "hidden_states": 2 * kwargs["hidden_states"] + 1}
        return kwargs

    before_attention(model, disturbed)
    lens = Lens.of(model)
    assert cached_reading(lens, 8).way != "whole"
    assert cached_reading(lens, 9).way == "whole"
    assert_exact(lens)
    assert_greedy(lens)


def test_positions_that_are_turned_otherwise_in_long_texts_are_read_whole(tiny):
    lens = Lens.of(tiny("phi3-longrope"))
    assert cached_reading(lens, 16).way != "whole"
    assert cached_reading(lens, 17).way == "whole"
    assert lens.n_ctx == 16
    with pytest.raises(sl.DemonstrationError, match="context of 16"):
        continue_prompts(lens, [[1, *range(4, 13)]], 12)


def test_the_probe_is_not_fooled_by_what_stands_in_the_model(fresh):
    model = fresh()
    lens = Lens.of(model)
    before_attention(model, forgotten)
    point = model.hook_dict["blocks.1.hook_resid_post"]
    calls = []
    point.add_hook(lambda x, hook: calls.append("theirs"))
    with lens.hooks([("blocks.1.hook_resid_post", lambda x: torch.zeros_like(x))]):
        before = list(point._forward_hooks.items())
        lens.cached_readings.clear()
        with pytest.warns(sl.SeaLensWarning, match="does not read"):
            assert cached_reading(lens).way == "whole"
        assert list(point._forward_hooks.items()) == before
        assert not calls
    model.reset_hooks()


def test_the_probe_leaves_random_numbers_alone_and_runs_once(fresh):
    model = fresh()
    lens = Lens.of(model)
    lens.cached_readings.clear()
    state, passes = torch.get_rng_state(), []
    handle = model.original_model.register_forward_hook(lambda *_: passes.append(1))
    found = cached_reading(lens)
    assert torch.equal(torch.get_rng_state(), state)
    assert 0 < len(passes) <= 5
    assert cached_reading(lens, 5) is found
    assert len(passes) <= 5
    handle.remove()


def test_what_was_read_whole_before_is_what_the_probe_would_read(fresh):
    lens = Lens.of(fresh())
    probe = Probe.of(lens.d_vocab, lens.n_ctx)
    read = Read.of(probe, whole(lens, probe))
    lens.cached_readings.clear()
    alone = cached_reading(lens)
    lens.cached_readings.clear()
    given = cached_reading(lens, read=read)
    assert (given.way, given.padded) == (alone.way, alone.padded) == ("own", True)
    # The same steps against the same logits, once more or less padding beside them.
    for found in (alone, given):
        assert found.deviation is not None
        assert found.deviation < 1e-5
    # It is these logits that the steps are held against.
    for row in range(2):
        other = read.logits.clone()
        other[row, 3] += 1
        lens.cached_readings.clear()
        with pytest.warns(sl.SeaLensWarning, match="does not read with its own cache"):
            assert cached_reading(lens, read=Read(probe, other)).way == "whole"


def test_half_precision_is_no_reason_to_read_whole(tmp_path):
    for dtype in (torch.bfloat16, torch.float16):
        lens = Lens.of(load(save("llama", tmp_path / str(dtype)), dtype=dtype))
        assert cache_deviation(lens) is not None


def test_the_models_own_generate_under_an_edit_is_that_of_sea_lens(fresh):
    model = fresh()
    edit = fitted(model)
    prompt = "w1 w2 w3 w4"
    with edit.applied(model, strength=2.0), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        ours = sl.generate(model, prompt, max_new_tokens=8)
        tokens = model.to_tokens(prompt, prepend_bos=True)
        own = model.generate(tokens, max_new_tokens=8, do_sample=False, verbose=False, return_type="tokens")
    decoded = Lens.of(model).tokenizer.decode(own[0, tokens.shape[1] :], skip_special_tokens=True)
    assert ours == [decoded if decoded.startswith(" ") else f" {decoded}"] or ours == [decoded]


@pytest.mark.parametrize(("benchmark", "file"), [("truthfulqa", "truthfulqa/mc_task.json"), ("bbq", "bbq/Age.jsonl")])
def test_benchmarks_score_as_without_a_cache(shared, benchmark, file):
    model = sl.load_model(shared / "models" / "stories260K", "bridge", device="cpu")
    assert cache_deviation(Lens.of(model)) is not None
    with_cache = sl.evaluate(model, benchmark, shared / "data" / file, limit=2)
    distrust(Lens.of(model))
    assert cache_deviation(Lens.of(model)) is None
    whole = sl.evaluate(model, benchmark, shared / "data" / file, limit=2)
    assert with_cache.scores == pytest.approx(whole.scores, abs=1e-6)
