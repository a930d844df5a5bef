"""The circuits that are planted in models with weights set by hand: what is in them, and what must be found.

A circuit (docs/method.md 9.5) is a small Llama of three layers, with four query heads over two key-value heads. MLPs
write a truth and a myth feature, equally strong, where the subject stands, and the edit drops the myth. What reads
those features carries the effect, and it alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..models.sites import Site

D_MODEL, D_MLP, N_LAYERS, N_HEADS, N_GROUPS, D_HEAD = 64, 24, 3, 4, 2, 16
# Places in the unrotated residual stream; what lies beyond is noise that the answer does not depend on. The embedding
# has the subject's place at the subject, `ONE` at every token, and `BEGIN` at the first token.
SUBJECT_AT, (MLP_TRUTH, MLP_MYTH), (MIDDLE_TRUTH, MIDDLE_MYTH), (SAID_TRUTH, SAID_MYTH) = 0, (1, 2), (3, 4), (5, 6)
ONE, BEGIN = 7, 8
NOISE = slice(9, D_MODEL)
MLP, MIDDLE, SAID = (MLP_TRUTH, MLP_MYTH), (MIDDLE_TRUTH, MIDDLE_MYTH), (SAID_TRUTH, SAID_MYTH)
# Tokens of every prompt, with BOS: uniform attention gives each of them one part of so many.
N_TOKENS = 7


@dataclass(frozen=True)
class Head:
    """A head that moves features from the places that it reads to those that it writes, times `gain`.

    Attributes:
        layer, head: which.
        reads, writes: the places.
        gain: what it writes of what it reads.
        query, key: the places whose product, times `sharpness`, is its attention score; None for uniform attention.
    """

    layer: int
    head: int
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    gain: float = 1.0
    query: int | None = None
    key: int | None = None
    sharpness: float = 3.0


@dataclass(frozen=True)
class Product:
    """A neuron of an MLP that writes the product of two sums of features, where the first is 0 or 1.

    Attributes:
        layer: whose MLP.
        first, second: weights by place.
        writes: the place.
    """

    layer: int
    first: Mapping[int, float]
    second: Mapping[int, float]
    writes: int


@dataclass(frozen=True)
class Circuit:
    """What is planted, and what every method must therefore find, as shares of the effect.

    Attributes:
        mlps: layers whose MLP writes the truth and the myth, with the places that it writes them to.
        heads: what moves them.
        read_at: the features that the unembedding reads.
        layers: share of each layer.
        products: neurons that what is moved comes together in.
        subject_last: whether the subject stands at the end of the prompt.
        site: what is edited; at "z" the myth is dropped in the heads that read the MLP's features.
        edited: which layers are edited; all where None.
        direct: share of each head by "direct".
        carried: share of each head by the patching methods, and at "z" by the methods of layers too.
        edges: share of each edge of mediation that has one.
        epsilon: of the norms: where the stream's squares are far below it, a norm is linear.
    """

    mlps: Mapping[int, tuple[int, int]]
    heads: tuple[Head, ...]
    read_at: tuple[int, int]
    layers: Mapping[int, float]
    products: tuple[Product, ...] = ()
    subject_last: bool = False
    site: str = "mlp_out"
    edited: tuple[int, ...] | None = None
    direct: Mapping[tuple[int, int], float] = field(default_factory=dict)
    carried: Mapping[tuple[int, int], float] = field(default_factory=dict)
    edges: Mapping[tuple[int, int, int | str, str], float] = field(default_factory=dict)
    epsilon: float = 1e6

    @property
    def edits_heads(self) -> bool:
        """Whether heads are edited one by one."""
        return Site.of(self.site).per_head


CIRCUITS: dict[str, Circuit] = {
    "direct": Circuit({1: MLP}, (), MLP, {1: 1.0}, subject_last=True, edges={(1, 3, "logits", "in"): 1.0}),
    "two_layers": Circuit(
        {0: MLP, 2: MLP},
        (),
        MLP,
        {0: 0.5, 2: 0.5},
        subject_last=True,
        edges={(0, 3, "logits", "in"): 0.5, (2, 3, "logits", "in"): 0.5},
    ),
    "head": Circuit(
        {0: MLP},
        (Head(2, 1, MLP, SAID),),
        SAID,
        {0: 1.0},
        direct={(2, 1): 1.0},
        carried={(2, 1): 1.0},
        edges={(0, 2, 1, "v"): 1.0},
    ),
    "series": Circuit(
        {0: MLP},
        (Head(1, 2, MLP, MIDDLE), Head(2, 1, MIDDLE, SAID)),
        SAID,
        {0: 1.0},
        direct={(2, 1): 1.0},
        carried={(1, 2): 1.0, (2, 1): 1.0},
        edges={(0, 1, 2, "v"): 1.0},
    ),
    "parallel": Circuit(
        {0: MLP},
        (Head(1, 0, MLP, SAID), Head(2, 3, MLP, SAID)),
        SAID,
        {0: 1.0},
        direct={(1, 0): 0.5, (2, 3): 0.5},
        carried={(1, 0): 0.5, (2, 3): 0.5},
        edges={(0, 1, 0, "v"): 0.5, (0, 2, 3, "v"): 0.5},
    ),
    "edited_head": Circuit(
        {0: MLP},
        (Head(1, 2, MLP, SAID),),
        SAID,
        {1: 1.0},
        site="z",
        direct={(1, 2): 1.0},
        carried={(1, 2): 1.0},
        edges={(1, 3, "logits", "in"): 1.0},
    ),
}

# What comes together in these does not add up, so that methods that ask different questions answer differently.
_BOTH_GONE = (Product(2, {ONE: 1.0, MIDDLE_TRUTH: -N_TOKENS}, {ONE: 1.0, MIDDLE_MYTH: -N_TOKENS}, SAID_TRUTH),)
INTERACTING: dict[str, Circuit] = {
    # Attention goes to the myth, and brings the subject with it.
    "by_key": Circuit(
        {0: MLP},
        (Head(2, 1, (SUBJECT_AT,), (SAID_MYTH,), query=ONE, key=MLP_MYTH),),
        SAID,
        {0: 1.0},
        direct={(2, 1): 1.0},
        carried={(2, 1): 1.0},
        edges={(0, 2, 1, "k"): 1.0},
    ),
    # Where the myth stands attention goes to the first token, and brings its mark with it.
    "by_query": Circuit(
        {0: MLP},
        (Head(2, 1, (BEGIN,), (SAID_MYTH,), query=MLP_MYTH, key=BEGIN),),
        SAID,
        {0: 1.0},
        subject_last=True,
        direct={(2, 1): 1.0},
        carried={(2, 1): 1.0},
        edges={(0, 2, 1, "q"): 1.0},
    ),
    # The head writes so much that the final norm divides by it.
    "final_norm": Circuit(
        {0: MLP},
        (Head(2, 1, MLP, SAID, gain=1e3),),
        SAID,
        {0: 1.0},
        direct={(2, 1): 1.0},
        carried={(2, 1): 1.0},
        edges={(0, 2, 1, "v"): 1.0},
        epsilon=1e3,
    ),
    # The truth is said once two layers' myths are both gone: one alone does nothing.
    "both_layers": Circuit(
        {0: MLP, 1: MIDDLE},
        (),
        SAID,
        {0: 0.5, 1: 0.5},
        (Product(2, {ONE: 1.0, MLP_MYTH: -1.0}, {ONE: 1.0, MIDDLE_MYTH: -1.0}, SAID_TRUTH),),
        subject_last=True,
        edited=(0, 1),
    ),
    # The myth is said while two layers' myths are both there: one alone does it all.
    "either_layer": Circuit(
        {0: MLP, 1: MIDDLE},
        (),
        SAID,
        {0: 0.5, 1: 0.5},
        (Product(2, {MLP_MYTH: 1.0}, {MIDDLE_MYTH: 1.0}, SAID_MYTH),),
        subject_last=True,
        edited=(0, 1),
    ),
    # Two heads of one layer bring the myth; the truth is said once neither does.
    "both_heads": Circuit(
        {0: MLP},
        (Head(1, 0, (MLP_MYTH,), (MIDDLE_TRUTH,)), Head(1, 3, (MLP_MYTH,), (MIDDLE_MYTH,))),
        SAID,
        {0: 1.0},
        _BOTH_GONE,
        edited=(0,),
    ),
}
