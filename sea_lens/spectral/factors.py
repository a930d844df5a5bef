"""The factors of one layer where they are needed: on the device and in the dtype of what they edit."""

import torch
from torch import Tensor

from .arithmetic import ThinProducts, is_linear
from .features import FeatureMap
from .subspaces import Subspaces


class Factors:
    """Subspaces of a layer, cast once for each device and dtype, and their products where the edit is linear.

    Args:
        subspaces: as they were fitted.
        feature: the map φ that they were fitted with.
        combine: how the two projections are put together.
    """

    def __init__(self, subspaces: Subspaces, feature: FeatureMap, combine: str) -> None:
        self._subspaces, self._feature, self._combine = subspaces, feature, combine
        self._cast: dict[tuple[torch.device, torch.dtype], tuple[Subspaces, ThinProducts | None]] = {}

    def beside(self, x: Tensor) -> tuple[Subspaces, ThinProducts | None]:
        """Those on the device and in the dtype of x."""
        key = x.device, x.dtype
        if key not in self._cast:
            # What is made in inference mode could never be part of a backward pass later on.
            with torch.inference_mode(False):
                subspaces = self._subspaces.to(*key)
                linear = is_linear(subspaces, self._feature, self._combine)
                self._cast[key] = subspaces, ThinProducts.of(subspaces, self._combine) if linear else None
        return self._cast[key]
