"""vLLM engines behind `sl.capture` and `sl.generate` (docs/method.md 6.14).

What needs an engine runs where vLLM is installed, in an environment with the extra `vllm`. An engine takes half a
minute to start, so that there is one for each family.
"""

import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import torch
from tiny import sentence
from torch import Tensor
from transformers.models.gemma.configuration_gemma import GemmaConfig
from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from wide_heads import with_wide_heads

import sea_lens as sl
from sea_lens.models.vllm_engine import _groups
from sea_lens.models.vllm_worker import FAMILIES, Read, Recording, put_functions, put_recording, take_out
from sea_lens.spectral.capturing import Captured
from sea_lens.spectral.statistics import Activations, InMemory

WIDTH, N_CTX = 64, 64
_SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": N_CTX,
}
# Heads of 32, the least that vLLM computes on a CPU.
CONFIGURATIONS = {
    "llama": lambda: LlamaConfig(**{**_SIZES, "num_hidden_layers": 8}, num_key_value_heads=1),
    "mistral": lambda: MistralConfig(**_SIZES, num_key_value_heads=1, head_dim=32, sliding_window=8),
    "gemma": lambda: GemmaConfig(**_SIZES, num_key_value_heads=1, head_dim=32),
    "gemma2": lambda: Gemma2Config(
        **_SIZES,
        num_key_value_heads=1,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=8,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
    "qwen2": lambda: Qwen2Config(**_SIZES, num_key_value_heads=1),
    "qwen3": lambda: Qwen3Config(**_SIZES, num_key_value_heads=1, head_dim=32),
    "gpt2": lambda: GPT2Config(vocab_size=tiny.VOCABULARY, n_embd=WIDTH, n_layer=3, n_head=2, n_positions=N_CTX),
}
SITES = ("mlp_out", "attn_out", "resid_post")
PROMPTS = [sentence(i, 2 + 3 * (i % 5)) for i in range(12)]


class Pair(NamedTuple):
    """A checkpoint in TransformerLens and in vLLM."""

    model: Any
    engine: Any


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory):
    """start(folder, **options) is a vLLM engine in this process."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("needs vLLM (pip install 'sea-lens[vllm]')")
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

    def started(folder: Path, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            llm = importlib.import_module("vllm").LLM
            options = {"max_model_len": N_CTX, "enforce_eager": True, "dtype": "float32", **options}
            return llm(str(folder), **options)

    return started


@pytest.fixture(scope="session")
def pairs(start, tmp_path_factory: pytest.TempPathFactory):
    """pairs(family) loads and starts each family once."""
    found: dict[str, Pair] = {}

    def pair(family: str) -> Pair:
        if family not in found:
            folder = tmp_path_factory.mktemp("vllm") / f"{family}_"
            tiny.FAMILIES[f"heads of 32, {family}"] = CONFIGURATIONS[family]
            tiny.save_tiny_model(f"heads of 32, {family}", folder)
            found[family] = Pair(sl.load_model(str(folder), "bridge", device="cpu"), start(folder))
        return found[family]

    return pair


@pytest.fixture
def pair(pairs) -> Pair:
    return pairs("llama")


def demonstrations() -> sl.Demonstrations:
    """Random ones; the neutral text of one begins neither of the others, and another is there twice."""
    made = list(tiny.demonstrations(9))
    return sl.Demonstrations([*made, sl.Demonstration("w1 w2", "w3 w4 w5", "w6"), made[0]])


def activations(covariance: sl.CrossCovariance) -> list[Tensor]:
    """(layers, n, units, d) of the neutral, the positive and the negative texts."""
    statistics = covariance.statistics
    assert isinstance(statistics, Activations)
    (part,) = statistics.in_one_part().parts
    assert isinstance(part, InMemory)
    return list(part.values)


def apart(left: sl.CrossCovariance, right: sl.CrossCovariance) -> float:
    """Largest difference of two captures, relative to the largest activation."""
    pairs_of = zip(activations(left), activations(right), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs_of)


@pytest.mark.parametrize("family", CONFIGURATIONS)
def test_an_engine_of_every_family_captures_what_transformer_lens_does(pairs, family):
    model, engine = pairs(family)
    for site in SITES:
        for position in ("last", "mean", "random"):
            ours, theirs = (
                sl.capture(one, demonstrations(), site=site, position=position, progress=False)
                for one in (model, engine)
            )
            assert ours.layers == theirs.layers
            assert apart(ours, theirs) < 1e-5, (site, position)


@pytest.mark.parametrize("family", CONFIGURATIONS)
def test_an_engine_of_every_family_generates_what_transformer_lens_does(pairs, family):
    model, engine = pairs(family)
    plain = sl.generate(model, PROMPTS, max_new_tokens=10, return_tokens=True)
    assert sl.generate(engine, PROMPTS, max_new_tokens=10, return_tokens=True) == plain
    for site in SITES:
        edit = tiny.fitted(model, site=site)
        options: dict[str, Any] = {"edit": edit, "max_new_tokens": 10, "return_tokens": True}
        of_layers = dict(zip(edit.choose_layers("last-2"), (0.5, 2.0), strict=True))
        each: list[dict[str, Any]] = [
            {"strength": 1.5},
            {"layers": "last-2", "combine": "average", "strength": of_layers},
        ]
        for how in each:
            edited = sl.generate(model, PROMPTS, **options, **how)
            assert sl.generate(engine, PROMPTS, **options, **how) == edited
            assert edited != plain
    # Nothing of an edit is left in the engine, its cache of beginnings included.
    assert sl.generate(engine, PROMPTS, max_new_tokens=10, return_tokens=True) == plain


def test_the_real_model_is_read_and_continued_alike(start, shared, tmp_path):
    folder = shared / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("needs the model stories260K")
    model, engine = (
        sl.load_model(str(folder), "bridge", device="cpu"),
        start(with_wide_heads(folder, tmp_path / "stories")),
    )
    texts = ["Once upon a time", "The red ball", "Lily was happy. She", "One day, a boy went to the park and"]
    rows = [sl.Demonstration(text, f"{text} was good", f"{text} ran away from") for text in texts]
    assert apart(*(sl.capture(one, rows, progress=False) for one in (model, engine))) < 1e-5
    edit = sl.fit(sl.capture(engine, rows, progress=False), rank=2)
    more: list[dict[str, Any]] = [{}, {"edit": edit, "layers": "last-2"}, {"stop": " the"}]
    for one in more:
        options: dict[str, Any] = {"max_new_tokens": 24, **one}
        assert sl.generate(engine, texts, **options) == sl.generate(model, texts, **options)


def test_generated_neutral_texts_are_those_of_transformer_lens(pair):
    ours, theirs = (
        sl.capture(one, demonstrations(), neutral="generated", max_new_tokens=5, progress=False) for one in pair
    )
    assert apart(ours, theirs) < 1e-5


def test_a_capture_says_what_it_was_made_with_and_is_fitted_stored_and_drawn_from_as_any(pair, tmp_path):
    model, engine = pair
    found = sl.capture(engine, demonstrations(), progress=False)
    record, expected = (sl.capture(one, demonstrations(), progress=False).provenance for one in (engine, model))
    assert record["model"].pop("backend") == "vllm"
    assert record["model"].pop("vllm")
    assert {**record, "model": {**expected["model"], **record["model"]}} == expected
    stored = sl.capture(engine, demonstrations(), progress=False, store=tmp_path / "kept", batch_size=4)
    edit = sl.fit(found, rank=2)
    for other in (sl.fit(stored, rank=2), sl.fit(sl.capture(model, demonstrations(), progress=False), rank=2)):
        for layer in edit.layers:
            torch.testing.assert_close(edit.projections(layer)[0], other.projections(layer)[0], atol=1e-4, rtol=0)
            assert other.signatures == pytest.approx(edit.signatures, rel=1e-4)
    drawn = Captured.of(engine, edit, demonstrations())
    assert torch.equal(drawn.neutral(0), Captured.of(engine, edit, demonstrations()).neutral(0))
    assert not activations(found)[0].is_inference()
    # More than the width: sums.
    rows = [sl.Demonstration(sentence(i, 4), sentence(i, 4) + " w1", sentence(i, 4) + " w2") for i in range(WIDTH)]
    summed = [sl.fit(sl.capture(one, rows, progress=False), rank=2) for one in pair]
    torch.testing.assert_close(summed[0].projections(3)[0], summed[1].projections(3)[0], atol=1e-4, rtol=0)


def test_drawn_continuations_depend_on_seed_and_prompt_alone(pair):
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "top_k": 20, "max_new_tokens": 8, "seed": 5}
    together = sl.generate(pair.engine, PROMPTS, **options)
    assert sl.generate(pair.engine, PROMPTS[3], **options) == together[3:4]
    assert sl.generate(pair.engine, PROMPTS, **{**options, "seed": 6}) != together
    assert len(set(sl.generate(pair.engine, PROMPTS[:1] * 4, **options))) > 1


def test_stop_texts_end_a_continuation_as_they_do_in_transformer_lens(pair):
    for stop in ("w1", ["w3", " w2"], "</s>"):
        for as_tokens in (False, True):
            options: dict[str, Any] = {"stop": stop, "max_new_tokens": 12, "return_tokens": as_tokens}
            assert sl.generate(pair.engine, PROMPTS, **options) == sl.generate(pair.model, PROMPTS, **options)


def test_what_an_engine_cannot_do_is_refused_by_name(pair):
    model, engine = pair
    edit, rows = tiny.fitted(model), demonstrations()
    with pytest.raises(sl.UnsupportedModelError, match="'z' is neither read nor edited: expected one of mlp_out"):
        sl.capture(engine, rows, site="z")
    with pytest.raises(sl.UnsupportedModelError, match="'hidden_states' is neither"):
        sl.capture(engine, rows, fit_site="hidden_states")
    with pytest.raises(sl.UnsupportedModelError, match="'z' is neither"):
        sl.generate(engine, PROMPTS, edit=tiny.fitted(model, site="z"))
    with pytest.raises(sl.UnsupportedModelError, match="DoLa acts on the logits"):
        sl.generate(engine, PROMPTS, edit=sl.dola(model))
    with pytest.raises(sl.InputError, match=r"positions 'prompt'.*expected positions 'all'"):
        sl.generate(engine, PROMPTS, edit=edit, positions="prompt")
    with pytest.raises(sl.InputError, match="strength of shape"):
        sl.generate(engine, PROMPTS, edit=edit, strength=torch.ones(3))
    with pytest.raises(sl.UnsupportedModelError, match=r"captures \(sl.capture\) and generates"):
        sl.effect(engine, edit, tiny.contrasts())
    with pytest.raises(sl.MismatchError, match=r"for a model of 8 layers|the edit is for"):
        sl.generate(engine, PROMPTS, edit=other_edit())
    with pytest.raises(sl.DemonstrationError, match="context holds 64"):
        sl.capture(engine, [sl.Demonstration(sentence(0, 80), "w1", "w2")])
    with pytest.raises(sl.DemonstrationError, match=r"demonstration 0.*reads one less"):
        sl.capture(engine, [sl.Demonstration(sentence(0, 63), "w1", "w2")])
    assert len(sl.generate(engine, PROMPTS, max_new_tokens=3)) == len(PROMPTS)


def other_edit() -> sl.SpectralEdit:
    """One of another width."""
    neutral, positive, negative = torch.randn(3, 6, 3, 32, generator=torch.Generator().manual_seed(0))
    return sl.fit_activations(neutral, positive, negative, rank=2)


def test_an_engine_that_reads_long_texts_in_parts_captures_the_same(pair, start):
    folder = pair.engine.llm_engine.vllm_config.model_config.model
    engine = start(folder, max_num_batched_tokens=8, max_num_seqs=4)
    assert (
        apart(*(sl.capture(one, demonstrations(), position="mean", progress=False) for one in (pair[0], engine))) < 1e-5
    )


def test_a_compiled_engine_is_refused_since_hooks_see_nothing_there(pair, start):
    folder = pair.engine.llm_engine.vllm_config.model_config.model
    engine, calls = start(folder, enforce_eager=False), []
    engine.apply_model(
        lambda model: model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1)) and None
    )
    engine.generate([{"prompt_token_ids": [1, 5]}], use_tqdm=False)
    assert calls == []
    with pytest.raises(sl.UnsupportedModelError, match=r"compiled.*enforce_eager=True"):
        sl.capture(engine, demonstrations())


# Without vLLM.

SEQUENCES = [[1, 5, 6, 7], [1, 5, 9], [1, 8]]


def recorded(passes: list[list[tuple[int, int]]], *, mean: bool = False) -> tuple[bool, Tensor | None]:
    """What is kept where the activation of a token is (100 · token + position), read in passes of (token, position)."""
    recording = Recording(SEQUENCES, [Read(0, 3, 4, 0), Read(0, 1, 3, 1), Read(2, 1, 2, 2)], 3, mean=mean)
    for one in passes:
        tokens, positions = torch.tensor(one).unbind(1)
        recording.begin(tokens, positions)
        recording.keep("here", (100.0 * tokens + positions)[:, None])
    kept = recording.kept.get("here")
    return recording.complete, None if kept is None else kept[:, 0]


def whole(*numbers: int) -> list[tuple[int, int]]:
    return [(token, place) for number in numbers for place, token in enumerate(SEQUENCES[number])]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_texts_are_told_apart_in_whatever_order_they_are_run(order):
    complete, kept = recorded([whole(*order)], mean=True)
    assert complete
    assert kept is not None
    assert kept.tolist() == [703.0, 501.0 + 602.0, 801.0]
    assert recorded([whole(one) for one in order], mean=True)[1].tolist() == kept.tolist()  # type: ignore[union-attr]


def test_a_text_that_is_read_in_parts_is_put_together():
    complete, kept = recorded([whole(2) + whole(1), whole(0)[:3], whole(0)[3:]])
    assert complete
    assert kept is not None
    assert kept.tolist() == [703.0, 501.0 + 602.0, 801.0]


def test_parts_that_two_texts_could_have_are_credited_to_none():
    # Both of the longer texts begin with these tokens.
    assert not recorded([whole(0)[:2], whole(0)[2:], whole(1), whole(2)])[0]
    assert not recorded([whole(0, 1)])[0]
    assert not recorded([whole(0, 1), [(1, 1), (8, 2)]])[0]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([], []), ([3, 3, 3], [2, 1]), ([9, 1, 1], [1, 2]), ([1] * 5, [3, 2]), ([2, 5, 6], [2, 1])],
)
def test_together_texts_fill_no_more_than_a_pass(lengths, expected):
    groups = list(_groups(lengths, 7, 3))
    assert [len(lengths[group]) for group in groups] == expected
    assert [length for group in groups for length in lengths[group]] == lengths


class Block(torch.nn.Module):
    """A block that hands on what it adds and what it adds it to, as vLLM's do, and works in place as theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = torch.nn.Linear(4, 4)

    def forward(self, hidden: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        stream.add_(hidden)
        return self.mlp(stream.clone()), stream


class Blocks(torch.nn.Module):
    """Two such blocks behind an embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.layers = torch.nn.Embedding(10, 4), torch.nn.ModuleList([Block(), Block()])

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.embedding(input_ids) + positions[:, None]
        stream = torch.zeros_like(hidden)
        for layer in self.layers:
            hidden, stream = layer(hidden, stream)
        return hidden + stream


@torch.no_grad()
def test_the_stream_behind_a_block_is_read_and_edited_as_the_sum_of_what_the_block_hands_on():
    model, (tokens, positions) = Blocks(), torch.tensor(whole(0, 1, 2)).unbind(1)
    plain = model(input_ids=tokens, positions=positions)
    recording = Recording(SEQUENCES, [Read(0, 3, 4, 0), Read(2, 1, 2, 1)], 2, mean=False)
    put_recording(model, recording, ["layers.1", "layers.0.mlp"])
    assert torch.equal(model(input_ids=tokens, positions=positions), plain)
    left = take_out(model)
    assert left is not None
    counts, complete, found = left
    assert (counts.passes, counts.calls, complete) == (1, {"layers.0.mlp": 1, "layers.1": 1}, True)
    assert torch.equal(found["layers.1"], plain[[3, 8]])
    put_functions(model, {"layers.1": lambda: lambda x: 2 * x, "layers.0.mlp": lambda: lambda x: x})
    assert torch.equal(model(input_ids=tokens, positions=positions), 2 * plain)
    assert take_out(model) is not None
    assert take_out(model) is None
    assert torch.equal(model(input_ids=tokens, positions=positions), plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_says_where_its_sites_are(name):
    family = FAMILIES[name]
    assert family.point("resid_post", 3) == f"{family.blocks}.3"
    assert len({family.point(site, 3) for site in SITES}) == 3
    with pytest.raises(sl.UnsupportedModelError, match="'z' is neither read nor edited"):
        family.point("z", 3)
