"""Models whose weights are set by hand, so that it is known which layer, head and direction carries an edit's effect.

Every circuit (docs/method.md 9.5) is a small Llama of three layers, with four query heads over two key-value heads. An
MLP writes a truth and a myth feature, equally strong, where the subject stands, and the edit drops the myth. What reads
the two features carries the effect, and it alone: all else reads and writes directions that the answer never depends
on. Attention is uniform (no queries), and the norms are linear to one part in a million (their epsilon is far above any
activation), so "all else carries nothing" holds by construction. The residual stream is rotated at random, so that no
feature lies along an axis.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from ..errors import InputError
from ..models.load import load_model
from ..models.sites import Site
from ..spectral.edit import SpectralEdit
from ..spectral.fitting import fit_activations
from ..texts.demonstrations import Contrasts
from ..texts.items import Contrast
from .tokenizer import BOS, EOS, PAD, word_tokenizer

D_MODEL, D_MLP, N_LAYERS, N_HEADS, N_GROUPS, D_HEAD = 64, 24, 3, 4, 2, 16
EPSILON = 1e6
SUBJECT, TRUTH, MYTH = "Velmora", "Tarsk", "Orlen"
FILLERS = ("what", "is", "the", "capital", "of", "now", "then", "?")
# Places in the unrotated residual stream; what lies beyond is noise that the answer does not depend on.
SUBJECT_AT, (MLP_TRUTH, MLP_MYTH), (MIDDLE_TRUTH, MIDDLE_MYTH), (SAID_TRUTH, SAID_MYTH) = 0, (1, 2), (3, 4), (5, 6)
NOISE = slice(7, D_MODEL)
MLP, MIDDLE, SAID = (MLP_TRUTH, MLP_MYTH), (MIDDLE_TRUTH, MIDDLE_MYTH), (SAID_TRUTH, SAID_MYTH)


@dataclass(frozen=True)
class Head:
    """A head that moves a pair of features (truth, myth) from `reads` to `writes`, times `gain`."""

    layer: int
    head: int
    reads: tuple[int, int]
    writes: tuple[int, int]
    gain: float = 1.0


@dataclass(frozen=True)
class Circuit:
    """What is planted, and what every method must therefore find, as shares of the effect.

    Attributes:
        mlps: layers whose MLP writes the truth and the myth.
        heads: what moves them.
        read_at: the features that the unembedding reads.
        subject_last: whether the subject stands at the end of the prompt.
        site: what is edited; at "z" the myth is dropped in the heads that read the MLP's features.
        layers: share of each layer.
        direct: share of each head by "direct".
        carried: share of each head by the patching methods, and at "z" by the methods of layers too.
    """

    mlps: tuple[int, ...]
    heads: tuple[Head, ...]
    read_at: tuple[int, int]
    layers: Mapping[int, float]
    subject_last: bool = False
    site: str = "mlp_out"
    direct: Mapping[tuple[int, int], float] = field(default_factory=dict)
    carried: Mapping[tuple[int, int], float] = field(default_factory=dict)

    @property
    def edits_heads(self) -> bool:
        """Whether heads are edited one by one."""
        return Site.of(self.site).per_head


CIRCUITS: dict[str, Circuit] = {
    "direct": Circuit((1,), (), MLP, {1: 1.0}, subject_last=True),
    "two_layers": Circuit((0, 2), (), MLP, {0: 0.5, 2: 0.5}, subject_last=True),
    "head": Circuit((0,), (Head(2, 1, MLP, SAID),), SAID, {0: 1.0}, direct={(2, 1): 1.0}, carried={(2, 1): 1.0}),
    "series": Circuit(
        (0,),
        (Head(1, 2, MLP, MIDDLE), Head(2, 1, MIDDLE, SAID)),
        SAID,
        {0: 1.0},
        direct={(2, 1): 1.0},
        carried={(1, 2): 1.0, (2, 1): 1.0},
    ),
    "parallel": Circuit(
        (0,),
        (Head(1, 0, MLP, SAID), Head(2, 3, MLP, SAID)),
        SAID,
        {0: 1.0},
        direct={(1, 0): 0.5, (2, 3): 0.5},
        carried={(1, 0): 0.5, (2, 3): 0.5},
    ),
    "edited_head": Circuit(
        (0,), (Head(1, 2, MLP, SAID),), SAID, {1: 1.0}, site="z", direct={(1, 2): 1.0}, carried={(1, 2): 1.0}
    ),
}


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
    """Build one of `CIRCUITS`.

    Args:
        name: which.
        backend: as in `load_model`.
        seed: of the noise and the rotation.

    Raises:
        InputError: an unknown circuit.
    """
    if name not in CIRCUITS:
        raise InputError(f"unknown circuit {name!r}: expected one of {', '.join(CIRCUITS)}")
    circuit = CIRCUITS[name]
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=generator, dtype=torch.float64)).Q
    words = [*FILLERS, SUBJECT, TRUTH, MYTH]
    tokenizer = word_tokenizer(words, context=32)
    network = _network(circuit, tokenizer.get_vocab(), rotation, generator)
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        model = load_model(folder, backend, device="cpu")  # type: ignore[arg-type]
    orders = [torch.randperm(len(FILLERS), generator=generator).tolist()[:5] for _ in range(6)]
    prompts = [" ".join(_placed([FILLERS[i] for i in order], circuit.subject_last)) for order in orders]
    contrasts = Contrasts(Contrast(prompt, f" {TRUTH}", f" {MYTH}") for prompt in prompts)
    edit, directions = _edit(circuit, rotation, generator)
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
            rms_norm_eps=EPSILON,
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
            tensor[:] = EPSILON**0.5
    embedding = tensors["model.embed_tokens.weight"]
    embedding[:, NOISE] = noise(len(vocabulary), n_noise)
    embedding[vocabulary[SUBJECT], SUBJECT_AT] = 1.0
    unembedding = tensors["lm_head.weight"]
    unembedding[:, NOISE] = noise(len(vocabulary), n_noise)
    # Truth and myth read the same noise, which their difference does not see.
    unembedding[vocabulary[MYTH]] = unembedding[vocabulary[TRUTH]]
    for word, place in ((TRUTH, circuit.read_at[0]), (MYTH, circuit.read_at[1])):
        unembedding[vocabulary[word], place] = 4.0
    for layer in range(N_LAYERS):
        at = f"model.layers.{layer}."
        gate, up, down = (tensors[f"{at}mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
        gate[1:, NOISE], up[1:, NOISE], down[NOISE, 1:] = (
            noise(D_MLP - 1, n_noise),
            noise(D_MLP - 1, n_noise),
            noise(n_noise, D_MLP - 1),
        )
        if layer in circuit.mlps:
            gate[0, SUBJECT_AT], up[0, SUBJECT_AT] = 20.0, 1.0
            down[list(MLP), 0] = 1 / 20
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
    reads = ("embed_tokens", "lm_head", "gate_proj", "up_proj", "v_proj")
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
    myth_at = 1 if circuit.edits_heads else MLP_MYTH
    basis = torch.eye(width, dtype=torch.float64) if circuit.edits_heads else rotation
    kept, dropped = 3, 3
    neutral = torch.zeros(kept + dropped, N_LAYERS, units, width, dtype=torch.float64)
    directions: dict[tuple[Any, ...], float] = {}
    for layer in range(N_LAYERS):
        for unit in range(units):
            places = noise_from + torch.randperm(width - noise_from, generator=generator)[: kept + dropped]
            carries = (layer, unit) in carriers
            if carries:
                places[kept + 1] = myth_at
                label = (layer, unit, "-", 1) if circuit.edits_heads else (layer, "-", 1)
                directions[label] = circuit.layers[layer]
            lengths = torch.tensor([3.0, 2.0, 1.0, 3.0, 2.0, 1.0], dtype=torch.float64)
            neutral[:, layer, unit] = (basis[:, places] * lengths).T
    positive, negative = neutral.clone(), neutral.clone()
    positive[kept:], negative[:kept] = 0.0, 0.0
    if not circuit.edits_heads:
        neutral, positive, negative = (x[:, :, 0] for x in (neutral, positive, negative))
    return fit_activations(neutral, positive, negative, rank=(kept, dropped), site=circuit.site), directions
