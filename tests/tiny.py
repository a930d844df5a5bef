"""Tiny random models in Hugging Face format, demonstrations, contrasts and edits for them, and what they make."""

import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.gemma.configuration_gemma import GemmaConfig
from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.gpt_neox.configuration_gpt_neox import GPTNeoXConfig
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.olmo2.configuration_olmo2 import Olmo2Config
from transformers.models.olmo3.configuration_olmo3 import Olmo3Config
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

import sea_lens as sl
from sea_lens.models.load import hooked_available

BACKENDS = ["hooked", "bridge"] if hooked_available() else ["bridge"]
VOCABULARY = 64
N_CTX = 48
N_LAYERS = 3
WORDS = [f"w{i}" for i in range(VOCABULARY - 4)]

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": N_CTX,
}
# A name of older configurations, which Transformers still reads but does not declare.
_ROTARY: dict[str, Any] = {"rotary_pct": 0.25}

FAMILIES = {
    "llama": lambda: LlamaConfig(**_SIZES, num_key_value_heads=2),
    "mistral": lambda: MistralConfig(**_SIZES, num_key_value_heads=2, head_dim=8, sliding_window=16),
    "gemma": lambda: GemmaConfig(**_SIZES, num_key_value_heads=1, head_dim=16),
    "gemma2": lambda: Gemma2Config(
        **_SIZES,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=8,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
    "qwen2": lambda: Qwen2Config(**_SIZES, num_key_value_heads=2),
    "qwen3": lambda: Qwen3Config(**_SIZES, num_key_value_heads=2, head_dim=8),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=N_LAYERS, n_head=4, n_positions=N_CTX),
    "pythia": lambda: GPTNeoXConfig(**_SIZES, **_ROTARY, use_parallel_residual=True),
}
# Families with norms behind attention and the MLP, and none in front of them. A HookedTransformer knows OLMo 2 by the
# names of its released models alone.
NORMS_BEHIND = {
    "olmo2": lambda: Olmo2Config(**_SIZES, num_key_value_heads=2),
    "olmo3": lambda: Olmo3Config(**_SIZES, num_key_value_heads=2, sliding_window=8),
}
# Every family on every backend; where both are installed, the bridge of three families that differ most. The bridge of
# all families is tested where it is the only backend, with the newer TransformerLens.
PAIRS = [
    (family, backend)
    for family in FAMILIES
    for backend in BACKENDS
    if "hooked" not in BACKENDS or backend == "hooked" or family in ("llama", "gemma2", "pythia")
]


def save_tiny_model(family: str, folder: Path, *, bos: bool = True) -> Path:
    """Write a random model of a family with a word-level tokenizer; `bos` False gives it none."""
    save_random_weights({**FAMILIES, **NORMS_BEHIND}[family](), folder, 0.15)
    words = ["<pad>", "<s>", "</s>", "<unk>", *WORDS]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    specials = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"} | ({"bos_token": "<s>"} if bos else {})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials).save_pretrained(folder)
    return folder


def save_random_weights(config: Any, folder: Path, spread: float) -> None:
    """Write a random model of a configuration; `spread` is the standard deviation of what is added to every weight."""
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        # Larger than at initialisation, biases and norms as well, so that every part of the model matters.
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    model.save_pretrained(folder)


def sentence(seed: int, length: int) -> str:
    """A text of this many random words."""
    generator = torch.Generator().manual_seed(seed)
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator).tolist())


def demonstrations(n: int = 12) -> sl.Demonstrations:
    """Random demonstrations of different lengths."""
    items = []
    for i in range(n):
        prompt = sentence(i, 3 + i % 5)
        positive, negative = f"{prompt} {sentence(1000 + i, 1 + i % 2)}", f"{prompt} {sentence(2000 + i, 1 + i % 3)} w0"
        items.append(sl.Demonstration(prompt, positive, negative))
    return sl.Demonstrations(items)


def contrasts(n: int = 6) -> sl.Contrasts:
    """Random contrasts, some of whose completions have several words."""
    return sl.Contrasts(
        sl.Contrast(sentence(50 + i, 3 + i % 4), f" w{i} {sentence(i, i % 3)}".rstrip(), f" w{i + 20}")
        for i in range(n)
    )


def fitted(model, *, site: str = "mlp_out", feature: str = "identity", **options: Any) -> sl.SpectralEdit:
    """An edit fitted on the random demonstrations."""
    options.setdefault("rank", (3, 2))
    with warnings.catch_warnings():
        # The negative texts end in one word, and the first MLP of a parallel block sees nothing else of them.
        warnings.filterwarnings("ignore", message="ranks above the numerical rank")
        return sl.fit(sl.capture(model, demonstrations(), site=site, feature=feature, progress=False), **options)


def tokens(rows: int = 2, length: int = 9, seed: int = 0) -> torch.Tensor:
    """Random tokens behind a BOS."""
    generator = torch.Generator().manual_seed(seed)
    body = torch.randint(4, VOCABULARY, (rows, length - 1), generator=generator)
    return torch.cat([torch.ones(rows, 1, dtype=torch.int64), body], dim=1)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [one.numel() for one in tree_leaves(result) if isinstance(one, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return result
