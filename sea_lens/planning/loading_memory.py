"""Memory of `load_model`, beside the weights."""

from ..models.reference import Probe
from .empty_models import EmptyModel

# Logits of the probe that stand side by side as a model is checked: the reference's and the model's own in float32, and
# both in float64.
_CHECKED = 4 + 4 + 8 + 8


def loading(model: EmptyModel, stored: int) -> int:
    """What loading takes at most beside the model that it gives.

    Weights are read one after another. The largest that is converted stands beside what it becomes.

    Args:
        model: what is loaded.
        stored: bytes of a number as the weights are stored.
    """
    lens = model.lens
    checked = _CHECKED * Probe.of(lens.d_vocab, lens.n_ctx).tokens.numel() * lens.d_vocab
    converted = 0 if stored == model.dtype.itemsize else model.largest * (stored + model.dtype.itemsize)
    return max(checked, converted)
