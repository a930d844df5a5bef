"""Models whose weights are set by hand, so that it is known which layer, head and direction carries an edit's effect.

What is planted is said in `circuits`. All else reads and writes directions that the answer never depends on. Attention
is uniform (no queries) but for heads that are told otherwise, and norms are linear to one part in a million (their
epsilon is far above any activation), so "all else carries nothing" holds by construction. The residual stream is
rotated at random, so that no feature lies along an axis.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from ..errors import InputError
from ..models.huggingface import quiet
from ..models.load import load_model
from ..spectral.edit import SpectralEdit
from ..spectral.fitting import fit_activations
from ..texts.demonstrations import Contrasts
from ..texts.items import Contrast
from .circuits import (
    BEGIN,
    CIRCUITS,
    D_HEAD,
    D_MLP,
    D_MODEL,
    INTERACTING,
    N_GROUPS,
    N_HEADS,
    N_LAYERS,
    NOISE,
    ONE,
    SUBJECT_AT,
    Circuit,
)
from .tokenizer import BOS, EOS, PAD, word_tokenizer

SUBJECT, TRUTH, MYTH = "Velmora", "Tarsk", "Orlen"
FILLERS = ("what", "is", "the", "capital", "of", "now", "then", "?")
# What a query and a key lie along in a head: the pair of places that its position turns least.
TURNED_LEAST = D_HEAD // 2 - 1


@dataclass(frozen=True)
class Planted:
    """A circuit as a model, with an edit and contrasts.

    Attributes:
        circuit: what is planted.
        model: a TransformerLens model.
        edit: drops the myth where the circuit carries it, and elsewhere directions of noise.
        contrasts: prompts about the subject, truth against myth.
        directions: share of each singular direction, by label as in `DirectionContributions`.
    """

    circuit: Circuit
    model: Any
    edit: SpectralEdit
    contrasts: Contrasts
    directions: dict[tuple[Any, ...], float]


def planted(name: str, backend: str = "auto", seed: int = 0) -> Planted:
    """Build one of the circuits of `CIRCUITS` or `INTERACTING`.

    Args:
        name: which.
        backend: as in `load_model`.
        seed: of the noise and the rotation.

    Raises:
        InputError: an unknown circuit.
    """
    known = CIRCUITS | INTERACTING
    if name not in known:
        raise InputError(f"unknown circuit {name!r}: expected one of {', '.join(known)}")
    circuit = known[name]
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=generator, dtype=torch.float64)).Q
    words = [*FILLERS, SUBJECT, TRUTH, MYTH]
    tokenizer = word_tokenizer(words, context=32)
    network = _network(circuit, tokenizer.get_vocab(), rotation, generator)
    with tempfile.TemporaryDirectory() as folder:
        with quiet():
            network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        model = load_model(folder, backend, device="cpu")  # type: ignore[arg-type]
    orders = [torch.randperm(len(FILLERS), generator=generator).tolist()[:5] for _ in range(6)]
    prompts = [" ".join(_placed([FILLERS[i] for i in order], circuit.subject_last)) for order in orders]
    contrasts = Contrasts(Contrast(prompt, f" {TRUTH}", f" {MYTH}") for prompt in prompts)
    edit, directions = _edit(circuit, rotation, generator)
    if circuit.edited is not None:
        edit = edit.with_defaults(layers=circuit.edited)
    return Planted(circuit, model, edit, contrasts, directions)


def _placed(fillers: list[str], subject_last: bool) -> list[str]:
    return [*fillers, SUBJECT] if subject_last else [*fillers[:2], SUBJECT, *fillers[2:]]


def _network(
    circuit: Circuit, vocabulary: Mapping[str, int], rotation: Float[Tensor, "d d"], generator: torch.Generator
) -> LlamaForCausalLM:
    """The weights; each matrix is written in the unrotated stream and then turned."""

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / 8

    n_noise = NOISE.stop - NOISE.start
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=D_MODEL,
            intermediate_size=D_MLP,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=N_HEADS,
            num_key_value_heads=N_GROUPS,
            head_dim=D_HEAD,
            max_position_embeddings=32,
            rms_norm_eps=circuit.epsilon,
            tie_word_embeddings=False,
            bos_token_id=vocabulary[BOS],
            eos_token_id=vocabulary[EOS],
            pad_token_id=vocabulary[PAD],
        )
    )
    tensors = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in network.named_parameters()}
    for name, tensor in tensors.items():
        if "norm" in name:
            # Norms divide by the root of epsilon, which this takes back.
            tensor[:] = circuit.epsilon**0.5
    embedding = tensors["model.embed_tokens.weight"]
    embedding[:, NOISE] = noise(len(vocabulary), n_noise)
    embedding[vocabulary[SUBJECT], SUBJECT_AT] = 1.0
    embedding[:, ONE] = 1.0
    embedding[vocabulary[BOS], BEGIN] = 1.0
    unembedding = tensors["lm_head.weight"]
    unembedding[:, NOISE] = noise(len(vocabulary), n_noise)
    # Truth and myth read the same noise, which their difference does not see.
    unembedding[vocabulary[MYTH]] = unembedding[vocabulary[TRUTH]]
    loudest = max([head.gain for head in circuit.heads], default=1.0)
    for word, place in ((TRUTH, circuit.read_at[0]), (MYTH, circuit.read_at[1])):
        unembedding[vocabulary[word], place] = 4.0 / loudest
    for layer in range(N_LAYERS):
        at = f"model.layers.{layer}."
        gate, up, down = (tensors[f"{at}mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
        gate[1:, NOISE], up[1:, NOISE], down[NOISE, 1:] = (
            noise(D_MLP - 1, n_noise),
            noise(D_MLP - 1, n_noise),
            noise(n_noise, D_MLP - 1),
        )
        if layer in circuit.mlps:
            # SiLU of 20 is 20.
            gate[0, SUBJECT_AT], up[0, SUBJECT_AT] = 20.0, 1.0
            down[list(circuit.mlps[layer]), 0] = 1 / 20
        for product in (product for product in circuit.products if product.layer == layer):
            for place, weight in product.first.items():
                gate[0, place] = 20 * weight
            for place, weight in product.second.items():
                up[0, place] = weight
            down[product.writes, 0] = 1 / 20
        value, output = tensors[f"{at}self_attn.v_proj.weight"], tensors[f"{at}self_attn.o_proj.weight"]
        value[:, NOISE] = noise(N_GROUPS * D_HEAD, n_noise)
        output[NOISE] = noise(n_noise, N_HEADS * D_HEAD)
        for head in (head for head in circuit.heads if head.layer == layer):
            # Another head of the same group sees these values too, and writes them to noise alone.
            group = head.head // (N_HEADS // N_GROUPS)
            if circuit.edits_heads:
                # Noise in an edited z would change its norm, and with it what is left of the truth.
                value[group * D_HEAD : (group + 1) * D_HEAD] = 0.0
            for place, (source, target) in enumerate(zip(head.reads, head.writes, strict=True)):
                value[group * D_HEAD + place] = 0.0
                value[group * D_HEAD + place, source] = 1.0
                output[target, head.head * D_HEAD + place] = head.gain
            if head.query is not None and head.key is not None:
                query, key = (tensors[f"{at}self_attn.{part}_proj.weight"] for part in "qk")
                query[head.head * D_HEAD + TURNED_LEAST, head.query] = head.sharpness * D_HEAD**0.5
                key[group * D_HEAD + TURNED_LEAST, head.key] = 1.0
    reads = ("embed_tokens", "lm_head", "gate_proj", "up_proj", "q_proj", "k_proj", "v_proj")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            tensor = tensors[name]
            if any(part in name for part in reads):
                tensor = tensor @ rotation.T
            elif "o_proj" in name or "down_proj" in name:
                tensor = rotation @ tensor
            parameter.copy_(tensor)
    return network


def _edit(
    circuit: Circuit, rotation: Float[Tensor, "d d"], generator: torch.Generator
) -> tuple[SpectralEdit, dict[tuple[Any, ...], float]]:
    """An edit that drops the myth where it is planted, keeps and drops noise everywhere, and each direction's share.

    Fitted from activations that lie along the wanted singular vectors; the planted one is the second in its spectrum.
    """
    units, width = (N_HEADS, D_HEAD) if circuit.edits_heads else (1, D_MODEL)
    noise_from = 2 if circuit.edits_heads else NOISE.start
    carriers = (
        {(h.layer, h.head) for h in circuit.heads} if circuit.edits_heads else {(layer, 0) for layer in circuit.mlps}
    )
    basis = torch.eye(width, dtype=torch.float64) if circuit.edits_heads else rotation
    kept, dropped = 3, 3
    neutral = torch.zeros(kept + dropped, N_LAYERS, units, width, dtype=torch.float64)
    directions: dict[tuple[Any, ...], float] = {}
    for layer in range(N_LAYERS):
        for unit in range(units):
            places = noise_from + torch.randperm(width - noise_from, generator=generator)[: kept + dropped]
            carries = (layer, unit) in carriers
            if carries:
                places[kept + 1] = 1 if circuit.edits_heads else circuit.mlps[layer][1]
                label = (layer, unit, "-", 1) if circuit.edits_heads else (layer, "-", 1)
                directions[label] = circuit.layers[layer]
            lengths = torch.tensor([3.0, 2.0, 1.0, 3.0, 2.0, 1.0], dtype=torch.float64)
            neutral[:, layer, unit] = (basis[:, places] * lengths).T
    positive, negative = neutral.clone(), neutral.clone()
    positive[kept:], negative[:kept] = 0.0, 0.0
    if not circuit.edits_heads:
        neutral, positive, negative = (x[:, :, 0] for x in (neutral, positive, negative))
    return fit_activations(neutral, positive, negative, rank=(kept, dropped), site=circuit.site), directions
