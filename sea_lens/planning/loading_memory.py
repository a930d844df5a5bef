"""Memory of `load_model`, above an idle process."""

from .empty_models import EmptyModel


def loading(model: EmptyModel) -> int:
    """What loading takes at most beside the model that it gives: weights that are converted come one after another.

    The largest weight stands beside its conversion, in what it is stored in and in what it becomes.
    """
    return 2 * model.largest * model.dtype.itemsize
