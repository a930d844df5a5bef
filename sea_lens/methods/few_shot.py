"""Few-shot prompting (in-context learning; Brown et al. 2020, arXiv 2005.14165; docs/method.md 5.5) as an edit."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, SupportsIndex

import torch

from .._support.arguments import as_integer
from ..edits.base import Edit
from ..edits.where import Defaults, Where
from ..errors import InputError
from ..models.lens import Lens
from ..models.prefix import PrefixStandIn
from ..models.standing import Change
from ..models.tokens import tokenise
from ..texts.demonstrations import Demonstrations
from ..texts.items import Demonstration


@dataclass(frozen=True)
class InContext(Edit):
    """Worked examples in front of everything that the model reads: made by `in_context`.

    They stand between BOS and the text, take room in the context, and are there or not: strength 1 in all layers, or
    strength 0. Logits come back for the text's own positions.

    Attributes:
        prefix: the examples as text, with what separates the last one from the text.
        model_layers: layers of the model.
    """

    combines: ClassVar[tuple[str, ...]] = ("prompt",)

    prefix: str
    model_layers: int
    site: str = field(default="tokens", init=False)
    defaults: Defaults = field(default=Defaults(), kw_only=True, repr=False)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(range(self.model_layers))

    @property
    def n_layers(self) -> int:
        return self.model_layers

    def check_strengths(self, model: Any, where: Where, *, scoring: bool) -> None:
        if not _all_are(where, 0) and not (_all_are(where, 1) and where.layers == self.layers):
            raise InputError(
                "examples stand in front of the whole model: expected strength 1 in all layers, or strength 0"
            )
        lens = Lens.of(model)
        if len(self._tokens(lens)) >= lens.n_ctx:
            raise InputError(
                f"the examples have {len(self._tokens(lens))} tokens, the context of {lens.name!r} holds {lens.n_ctx}"
            )

    def changes(self, model: Any, where: Where) -> Sequence[Change]:
        if _all_are(where, 0):
            return []
        lens = Lens.of(model)
        return [PrefixStandIn(lens, self._tokens(lens))]

    def _tokens(self, lens: Lens) -> list[int]:
        return tokenise(lens, self.prefix, prepend_bos=False, what="examples")


def _all_are(where: Where, value: int) -> bool:
    return all(bool(torch.as_tensor(alpha == value).all()) for alpha in where.strengths.values())


def in_context(
    model: Any, demonstrations: Iterable[Demonstration], shots: SupportsIndex = 6, separator: str = "\n\n"
) -> InContext:
    r"""Few-shot prompting with the positive texts of demonstrations.

    For a benchmark whose questions look otherwise than the demonstrations, and for models with a chat template, give
    the examples in the `prompt` of `evaluate` instead.

    Args:
        model: a TransformerLens model.
        demonstrations: the first `shots` of them are the examples.
        shots: number of examples.
        separator: behind each example.

    Raises:
        InputError: fewer demonstrations than shots, or examples that leave no room in the context.
    """
    shots = as_integer(shots, "shots", least=1)
    demonstrations = Demonstrations.of(demonstrations)
    if len(demonstrations) < shots:
        raise InputError(f"{shots} examples need as many demonstrations, got {len(demonstrations)}")
    prefix = "".join(demonstrations[i].positive + separator for i in range(shots))
    edit = InContext(prefix, Lens.of(model).n_layers)
    edit.check(model)
    return edit
