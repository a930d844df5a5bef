"""How far apart the two labels of a layer are (docs/method.md 2.5)."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .layer_statistics import Three
from .products import left_and_values


def signature(means: Three) -> tuple[float, Float[Tensor, " 2"]]:
    """Signature of a layer and its explained variance.

    The matrix (1/N) Σ x yᵀ of the 2N stacked [positive; negative] activations x (after φ, heads side by side) and their
    one-hot labels y has the two class means as its columns. The signature is the sum of its singular values; the
    explained variance is their squares, normalised. Divisor N, no centring, as in the authors' code.

    Args:
        means: of φ(h), φ(h⁺) and φ(h⁻), each (units, d).
    """
    columns = rearrange([means.positive, means.negative], "label units d -> (units d) label")
    singular_values = left_and_values(columns[None])[1][0]
    variance = singular_values.square()
    return singular_values.sum().item(), variance / variance.sum()


def centred_signature(means: Three) -> float:
    """Distance of the two class means of a layer, heads side by side; in units of φ.

    It is the first singular value of the centred matrix of 2.5 times √2, and does not follow the size of what both
    classes share, as `signature` does.
    """
    return (means.positive - means.negative).norm().item()
