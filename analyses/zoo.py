"""Tiny random models of many families and their odd variants: what the check of the model says of each, and the truth.

    python analyses/zoo.py rows.json                                   one run for each TransformerLens
    python analyses/zoo.py --table docs/models.md rows.json more.json  all runs in one table

Every model is made in memory from a configuration of transformers (hidden 32, 2 layers, weights of standard deviation
0.3), saved to a folder that is deleted afterwards, and loaded on every backend that the installed TransformerLens has.
The table has the deviation that `sea_lens.check_model` measured, or why `sea_lens.load_model` refused; and beside it
what was measured without the check, by reading other texts with the plain Hugging Face model: whole, with a cache in
three steps behind padding, and as greedy continuations.
"""

import argparse
import json
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import sea_lens as sl
from sea_lens.models.cache import Past
from sea_lens.models.lens import Lens
from sea_lens.models.load import hooked_available

VOCABULARY = 512
CONTEXT = 128
# What most configurations call their sizes.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
_BLOOM = {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}
_FALCON = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
_MPT = {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT}
_NEO = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "max_position_embeddings": CONTEXT,
    "attention_types": [[["global", "local"], 1]],
}
_GEMMA = {**_GROUPED, "head_dim": 16}
_GEMMA2 = {**_GEMMA, "query_pre_attn_scalar": 16, "sliding_window": 8}
_EXPERTS = {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
_QWEN_EXPERTS = {
    **_GROUPED,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "decoder_sparse_step": 1,
}


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=32)
_LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
_LONG = _rope(
    "longrope",
    factor=4.0,
    short_factor=[1.0, 1.1, 1.2, 1.3],
    long_factor=[2.0, 3.0, 4.0, 5.0],
    original_max_position_embeddings=32,
)
_DYNAMIC = _rope("dynamic", factor=4.0)

# Model types of transformers with their sizes, and the variants of each by what is odd about them.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "llama": (
        _GROUPED,
        {
            "": {},
            "rope linear": _rope("linear", factor=4.0),
            "rope yarn": _YARN,
            "rope llama3": _LLAMA3,
            "rope dynamic": _DYNAMIC,
            "rope longrope": _LONG,
            "rope theta 500000": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
            "mlp_bias": {"mlp_bias": True},
            "attention_bias": {"attention_bias": True},
            "tied": {"tie_word_embeddings": True},
            "one key head": {"num_key_value_heads": 1},
            "all key heads": {"num_key_value_heads": 4},
            "head_dim 16": {"head_dim": 16},
            "gelu": {"hidden_act": "gelu"},
            "rms_norm_eps 0.1": {"rms_norm_eps": 0.1},
        },
    ),
    "mistral": (
        _GROUPED,
        {
            "": {"sliding_window": None},
            "window 8": {"sliding_window": 8},
            "window 100": {"sliding_window": 100},
            "head_dim 16": {"head_dim": 16, "sliding_window": None},
            "rope yarn": {**_YARN, "sliding_window": None},
        },
    ),
    "mixtral": (_EXPERTS, {"": {}, "window 8": {"sliding_window": 8}}),
    "qwen2": (
        _GROUPED,
        {
            "": {},
            "window 8": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "window 100": {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 0},
            "rope yarn": _YARN,
            "rope theta 12345.5": {"rope_parameters": {"rope_type": "default", "rope_theta": 12345.5}},
        },
    ),
    "qwen3": (
        {**_GROUPED, "head_dim": 16},
        {
            "": {},
            "attention_bias": {"attention_bias": True},
            "rope yarn": _YARN,
            "window 8": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        },
    ),
    "qwen2_moe": (_QWEN_EXPERTS, {"": {}}),
    "qwen3_moe": ({**_QWEN_EXPERTS, "head_dim": 16}, {"": {}, "norm_topk_prob": {"norm_topk_prob": True}}),
    "gemma": (_GEMMA, {"": {}, "one key head": {"num_key_value_heads": 1}, "gelu": {"hidden_act": "gelu"}}),
    "gemma2": (
        _GEMMA2,
        {
            "": {},
            "no caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
            "cap 5": {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0},
            "query scalar 64": {"query_pre_attn_scalar": 64},
            "window 100": {"sliding_window": 100},
        },
    ),
    "gemma3_text": (_GEMMA2, {"": {}, "cap 5": {"final_logit_softcapping": 5.0}}),
    "gpt2": (
        _GPT2,
        {
            "": {},
            "no attention scale": {"scale_attn_weights": False},
            "scale by layer": {"scale_attn_by_inverse_layer_idx": True},
            "n_inner 48": {"n_inner": 48},
            "relu": {"activation_function": "relu"},
            "gelu": {"activation_function": "gelu"},
            "epsilon 0.1": {"layer_norm_epsilon": 0.1},
            "untied": {"tie_word_embeddings": False},
        },
    ),
    "gpt_neo": (_NEO, {"": {}, "window 8": {"window_size": 8}}),
    "gpt_neox": (
        _SIZES,
        {
            "": {"use_parallel_residual": True},
            "sequential": {"use_parallel_residual": False},
            "no attention bias": {"attention_bias": False},
            "rotary 0.5": {
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
            },
            "gelu_new": {"hidden_act": "gelu_new"},
        },
    ),
    "gptj": (
        {**_GPT2, "rotary_dim": 4},
        {"": {}, "tied": {"tie_word_embeddings": True}, "gelu": {"activation_function": "gelu"}},
    ),
    "codegen": ({**_GPT2, "rotary_dim": 4}, {"": {}}),
    "gpt_bigcode": (_GPT2, {"": {}, "all key heads": {"multi_query": False}}),
    "opt": (
        _OPT,
        {
            "": {},
            "norm behind": {"do_layer_norm_before": False},
            "no bias": {"enable_bias": False},
            "projected": {"word_embed_proj_dim": 16},
            "gelu": {"activation_function": "gelu"},
        },
    ),
    "bloom": (
        _BLOOM,
        {
            "": {},
            "residual behind norm": {"apply_residual_connection_post_layernorm": True},
            "untied": {"tie_word_embeddings": False},
            "epsilon 0.1": {"layer_norm_epsilon": 0.1},
        },
    ),
    "falcon": (
        _FALCON,
        {
            "": {},
            "alibi": {"alibi": True, "parallel_attn": False},
            "sequential": {"parallel_attn": False},
            "bias": {"bias": True},
            "new architecture": {"new_decoder_architecture": True, "num_kv_heads": 2},
            "all key heads": {"multi_query": False},
        },
    ),
    "mpt": (_MPT, {"": {}, "clipped": {"attn_config": {"clip_qkv": 0.5}}}),
    "phi": (
        _SIZES,
        {
            "": {},
            "qk norm": {"qk_layernorm": True},
            "rotary 0.25": {
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
            },
        },
    ),
    "phi3": (
        {**_GROUPED, "pad_token_id": 0},
        {"": {}, "window 8": {"sliding_window": 8}, "rope longrope": {**_LONG, "original_max_position_embeddings": 32}},
    ),
    "olmo": (_GROUPED, {"": {}, "clipped": {"clip_qkv": 0.5}}),
    "olmo2": (_GROUPED, {"": {}}),
    "olmo3": ({**_GROUPED, "sliding_window": 8}, {"": {}}),
    "olmoe": (
        {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
        {"": {}, "norm_topk_prob": {"norm_topk_prob": True}},
    ),
    "stablelm": (
        _GROUPED,
        {
            "": {},
            "parallel": {"use_parallel_residual": True},
            "qkv bias": {"use_qkv_bias": True},
            "qk norm": {"qk_layernorm": True},
        },
    ),
    "starcoder2": (
        _GROUPED,
        {"": {"sliding_window": None}, "window 8": {"sliding_window": 8}, "no bias": {"use_bias": False}},
    ),
    "cohere": (_GROUPED, {"": {}, "logit_scale 0.5": {"logit_scale": 0.5}, "qk norm": {"use_qk_norm": True}}),
    "granite": (
        _GROUPED,
        {
            "": {},
            "multipliers": {
                "embedding_multiplier": 2.0,
                "residual_multiplier": 0.5,
                "attention_multiplier": 0.5,
                "logits_scaling": 3.0,
            },
        },
    ),
    "granitemoe": (_EXPERTS, {"": {}}),
    "nemotron": (_GROUPED, {"": {}}),
    "glm": ({**_GROUPED, "head_dim": 8}, {"": {}}),
    "glm4": ({**_GROUPED, "head_dim": 8}, {"": {}}),
    "exaone4": ({**_GROUPED, "sliding_window": 8, "sliding_window_pattern": 2}, {"": {}}),
    "smollm3": (_GROUPED, {"": {}}),
    "arcee": (_GROUPED, {"": {}}),
    "apertus": (_GROUPED, {"": {}}),
    "helium": ({**_GROUPED, "head_dim": 8}, {"": {}}),
    "seed_oss": ({**_GROUPED, "head_dim": 8}, {"": {}}),
    "ernie4_5": ({**_GROUPED, "head_dim": 8}, {"": {}}),
    "gpt_oss": (
        {**_EXPERTS, "head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
        {"": {}},
    ),
    "biogpt": (_SIZES, {"": {}}),
    "xglm": (
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "ffn_dim": 64,
            "num_layers": 2,
            "attention_heads": 4,
            "max_position_embeddings": CONTEXT,
        },
        {"": {}},
    ),
    "openai-gpt": (_GPT2, {"": {}}),
    "bert": (_SIZES, {"": {}, "decoder": {"is_decoder": True}}),
    "mamba": ({"vocab_size": VOCABULARY, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}, {"": {}}),
}


@dataclass(frozen=True)
class Case:
    """One configuration.

    Attributes:
        family: the model type that transformers knows it by.
        variant: what is odd about it, empty where nothing is.
        options: the fields of the configuration.
    """

    family: str
    variant: str
    options: dict[str, Any] = field(hash=False)

    @property
    def name(self) -> str:
        """Family and variant."""
        return f"{self.family} {self.variant}".rstrip()

    def config(self) -> Any:
        """The configuration of transformers."""
        from transformers import AutoConfig

        config = AutoConfig.for_model(self.family, **self.options)
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
        return config

    def huggingface(self) -> Any:
        """The random model, in evaluation mode."""
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(self.config(), attn_implementation="eager")
        with torch.no_grad():
            for parameter in model.parameters():
                # Norms stay near what they are, so that signals stay of the size that they have in trained models.
                parameter.add_(0.3 * torch.randn_like(parameter))
        return model.eval()

    def write(self, folder: Path) -> Path:
        """Save model and tokenizer."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.huggingface().save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return folder


def tokenizer() -> Any:
    """A tokenizer of bytes with BOS, EOS and padding: its 512 tokens are the vocabulary of every model here."""
    from transformers import PreTrainedTokenizerFast

    pieces = ["<pad>", "<s>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [f"<extra{number}>" for number in range(VOCABULARY - len(pieces))]
    made = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


CASES = [
    Case(family, variant, {**sizes, **options})
    for family, (sizes, variants) in FAMILIES.items()
    for variant, options in variants.items()
]


BACKENDS = ("hooked", "bridge") if hooked_available() else ("bridge",)
# Lengths of the steps in which a text is read with a cache, and of greedy continuations.
_STEPS, _MORE = (9, 3, 1), 6
_PROMPTS = ("Once upon a time", "A dog")
LIMIT = 1e-4


@dataclass(frozen=True)
class Truth:
    """What the plain Hugging Face model says, reading whole.

    Attributes:
        tokens, logits: two texts.
        texts: its greedy continuations of two prompts.
    """

    tokens: torch.Tensor
    logits: torch.Tensor
    texts: list[str]

    @staticmethod
    def of(folder: Path) -> "Truth":
        """Read with the model of a folder."""
        from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        reader = PreTrainedTokenizerFast.from_pretrained(folder)
        tokens = torch.randint(4, VOCABULARY, (2, 30), generator=torch.Generator().manual_seed(1))
        texts = []
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False).logits
            for prompt in _PROMPTS:
                known = [1, *reader(prompt, add_special_tokens=False).input_ids]
                start = len(reader.decode(known, skip_special_tokens=True))
                for _ in range(_MORE):
                    chosen = int(model(input_ids=torch.tensor([known]), use_cache=False).logits[0, -1].argmax())
                    if chosen == reader.eos_token_id:
                        break
                    known.append(chosen)
                texts.append(reader.decode(known, skip_special_tokens=True)[start:])
        return Truth(tokens, logits, texts)

    def off(self, found: torch.Tensor, expected: torch.Tensor) -> float:
        """Largest difference, relative to the largest logit."""
        return ((found - expected).abs().max() / self.logits.abs().max()).item()


@dataclass(frozen=True)
class Outcome:
    """What became of a case on a backend.

    Attributes:
        name, family, backend: of which.
        refusal: why it was not loaded, None where it was.
        check: the deviation that the check measured.
        unlike: names of the facts that are not as they should be.
        whole, cached: how far logits are from the truth.
        generated: whether continuations are those of the truth.
    """

    name: str
    family: str
    backend: str
    refusal: str | None = None
    check: float | None = None
    unlike: tuple[str, ...] = ()
    whole: float | None = None
    cached: float | None = None
    generated: bool | None = None

    @property
    def exact(self) -> bool:
        """Whether what is read and generated is what the Hugging Face model says."""
        off = (self.whole, self.cached)
        return bool(self.generated) and all(value is not None and value <= LIMIT for value in off)


def measure(case: Case, folder: Path, backend: str, truth: Truth) -> Outcome:
    """Load the model of a folder, check it, and compare it with the truth."""
    try:
        with warnings.catch_warnings():
            # That a model's own cache is not exact stands in the table as well.
            warnings.simplefilter("ignore")
            model = sl.load_model(folder, backend)
    except sl.UnsupportedModelError as error:
        return Outcome(case.name, case.family, backend, refusal=str(error))
    report, lens = sl.check_model(model), Lens.of(model)
    tokens, expected = truth.tokens, truth.logits
    with torch.no_grad():
        whole = truth.off(lens.forward(tokens, torch.ones_like(tokens)), expected)
    return Outcome(
        case.name,
        case.family,
        backend,
        check=report.deviation,
        unlike=tuple(fact.name for fact in report.facts if not fact.ok),
        whole=whole,
        cached=_cached(lens, truth),
        generated=sl.generate(model, list(_PROMPTS), max_new_tokens=_MORE) == truth.texts,
    )


def _cached(lens: Lens, truth: Truth) -> float:
    """Two rows read in three steps, the second two tokens shorter."""
    first, rest = _STEPS[0], _STEPS[1:]
    short = first - 2
    begin = torch.stack([truth.tokens[0, :first], torch.cat([torch.zeros(2).long(), truth.tokens[1, :short]])])
    mask = torch.ones_like(begin)
    mask[1, :2] = 0
    logits, past = Past(lens, 2).read(begin, mask)
    worst = max(truth.off(logits[0], truth.logits[0, :first]), truth.off(logits[1, 2:], truth.logits[1, :short]))
    for step in rest:
        places = (slice(first, first + step), slice(short, short + step))
        logits, past = past.read(torch.stack([truth.tokens[row, place] for row, place in enumerate(places)]))
        worst = max(worst, *(truth.off(logits[row], truth.logits[row, place]) for row, place in enumerate(places)))
        first, short = first + step, short + step
    return worst


def outcomes(cases: Sequence[Case]) -> list[Outcome]:
    """Every case on every backend."""
    found = []
    for case in cases:
        with tempfile.TemporaryDirectory() as name:
            folder = case.write(Path(name) / "model")
            truth = Truth.of(folder)
            found += [measure(case, folder, backend, truth) for backend in BACKENDS]
    return found


def table(runs: dict[str, list[Outcome]]) -> str:
    """All runs as Markdown: a row for each case, a column for each backend of each version."""
    columns = [(label, backend) for label, run in runs.items() for backend in sorted({one.backend for one in run})]
    by_place = {(label, one.backend, one.name): one for label, run in runs.items() for one in run}
    every = [one for run in runs.values() for one in run]
    names = list(dict.fromkeys(one.name for one in every))
    loaded = [one for one in every if one.refusal is None]
    whole, cached = (max(getattr(one, kind) or 0.0 for one in loaded) for kind in ("whole", "cached"))
    about = [
        "`analyses/zoo.py` writes this table: tiny random models, each compared with the plain Hugging Face model. A",
        "number is the largest deviation of a logit that the check of the model (`sl.check_model`) measured, relative",
        "to the largest logit. Where there is none, `sl.load_model` refused, and why stands below. What was loaded was",
        "read once more without the check, on other texts: whole, with a cache behind padding, and in greedy",
        "continuations.",
        "",
        f"{len(names)} configurations of {len({one.family for one in every})} families, {len(every)} loads:",
        f"{len(loaded)} loaded, {sum(one.exact for one in loaded)} of them exact to {LIMIT:g} in all three ways, and",
        f"{len(every) - len(loaded)} refused. Without the check, the largest deviation is {whole:.0e} whole and",
        f"{cached:.0e} with a cache.",
    ]
    lines = [
        "# Which models are what they should be",
        "",
        *about,
        "",
        "| model | " + " | ".join(f"{backend}, {label}" for label, backend in columns) + " |",
        "| --- " * (len(columns) + 1) + "|",
    ]
    reasons: dict[str, int] = {}
    for name in names:
        cells = []
        for label, backend in columns:
            one = by_place.get((label, backend, name))
            if one is None:
                cells.append("")
            elif one.refusal is None:
                cells.append(f"{one.check or 0.0:.1g}" + ("" if one.exact else " **wrong**"))
            elif off := re.search(r"logits against the original, relative: (\S+)", one.refusal):
                cells.append(f"refused: off by {float(off[1]):.1g}")
            else:
                cells.append(f"refused ({reasons.setdefault(_reason(one.refusal), len(reasons) + 1)})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "Why models were refused:", "", *(f"{number}. {reason}" for reason, number in reasons.items())]
    told = sorted({f"{one.name} ({one.backend}): {', '.join(one.unlike)}" for one in loaded if one.unlike})
    if told:
        lines += [
            "",
            "What the check says of loaded models that is not as expected:",
            "",
            *(f"- {one}" for one in told),
        ]
    return "\n".join(lines) + "\n"


def _reason(refusal: str) -> str:
    """A refusal without the model's name and what it advises."""
    said = re.sub(r"^model '[^']*'( \(\w+\))?:? (could not be loaded: |cannot be run: )?", "", refusal).split(";")[0]
    said = re.sub(r"\. Available architectures.*", "", said)
    return re.sub(r"^\w+ is not currently supported", "The architecture is not currently supported", said).strip()


def main() -> None:
    """Measure all cases and write a file, or make a table of such files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", type=Path, nargs="+", help="the file to write, or with --table the files to read")
    parser.add_argument("--table", type=Path, help="the Markdown file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table is None:
        (path,) = arguments.rows
        label = f"TransformerLens {version('transformer-lens')}, transformers {version('transformers')}"
        found = outcomes(CASES)
        path.write_text(json.dumps({"versions": label, "outcomes": [asdict(one) for one in found]}), encoding="utf-8")
        wrong = [one for one in found if one.refusal is None and not one.exact]
        print(f"{len(found)} loads, {sum(one.refusal is not None for one in found)} refused, {len(wrong)} wrong")
        for one in wrong:
            print(one)
        return
    runs = {}
    for path in arguments.rows:
        content = json.loads(path.read_text(encoding="utf-8"))
        runs[content["versions"]] = [Outcome(**{**one, "unlike": tuple(one["unlike"])}) for one in content["outcomes"]]
    arguments.table.write_text(table(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
