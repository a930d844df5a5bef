"""What an edit does to each token of a text, and which of its layers do it: the result (docs/method.md 7.7)."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer
from ..errors import InputError
from .base import Contributions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class TextTokens:
    """A continuation, token by token.

    Attributes:
        prompt, text: the prompt and what follows it.
        tokens: of the text.
        preferred: at each place the token that the unedited model finds most probable behind the same text.
        before, after: log-probability of each token, unedited and edited, in nats.
    """

    prompt: str
    text: str
    tokens: tuple[str, ...]
    preferred: tuple[str, ...]
    before: Float[Tensor, " tokens"]
    after: Float[Tensor, " tokens"]


@dataclass(frozen=True, eq=False)
class TokenContributions(Contributions):
    """What each edited layer adds to the log-probability of each token of a continuation, in nats.

    The effect is the change of a whole continuation's log-probability. A token's change is that of its log-probability
    behind the same text, so that what an earlier token has changed is not counted again.

    Attributes:
        layers: the edited layers.
        texts: the continuations, token by token, one for each prompt.
        own_texts: whether the edited model wrote them. Each control edit has then written its own, whose change as a
            whole is in `control_effects`, and there are no `control_values`: this edit has chosen the tokens, and
            comes first on them whatever the labels say.
        Others as in `Contributions`, with prompts in the place of contrasts; a text that has no token at a place
        contributes 0 there.
    """

    item_values: Float[Tensor, "prompts layers places"]
    layers: tuple[int, ...] = field(kw_only=True)
    texts: tuple[TextTokens, ...] = field(kw_only=True, repr=False)
    own_texts: bool = field(default=False, kw_only=True)

    @property
    def labels(self) -> list[tuple[int, int]]:
        """(layer, place): a layer of the edit, and the place of a token, the first being 0."""
        return [(layer, place) for layer in self.layers for place in range(self.item_values.shape[2])]

    def named(self, label: Any) -> str:
        """The layer, and which token."""
        layer, place = label
        return f"layer {layer}, token {place + 1}"

    def p_values(self, *, corrected: bool = False) -> Float[Tensor, "*parts"]:
        """As in `Contributions`, of continuations that were given.

        Raises:
            InputError: there are no control edits, or the edited model wrote the texts.
        """
        if self.own_texts:
            raise InputError(
                "the edit has chosen these tokens, and comes first on them whatever the labels say: expected "
                "effect_p_value, in which each control wrote its own text, or given continuations"
            )
        return super().p_values(corrected=corrected)

    def changes(self) -> Float[Tensor, "prompts places"]:
        """Change of each token's log-probability; 0 where a text has no token."""
        found = torch.zeros(len(self.texts), self.item_values.shape[2], dtype=torch.float64)
        for row, one in zip(found, self.texts, strict=True):
            row[: len(one.tokens)] = one.after - one.before
        return found

    def to_frame(self) -> "pd.DataFrame":
        """One row per layer and place: layer, place and their numbers, means over prompts."""
        import pandas as pd

        layers, places = zip(*self.labels, strict=True)
        return pd.DataFrame({"layer": layers, "place": places, **self.columns()})

    def tokens_frame(self) -> "pd.DataFrame":
        """One row per token.

        Columns: prompt (its number), place, token, preferred (by the unedited model), before, after and change of its
        log-probability, and layer_L, what layer L adds of the change.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for prompt, (one, values) in enumerate(zip(self.texts, self.item_values, strict=True)):
            for place, token in enumerate(one.tokens):
                before, after = one.before[place].item(), one.after[place].item()
                told = {"prompt": prompt, "place": place, "token": token, "preferred": one.preferred[place]}
                told |= {"before": before, "after": after, "change": after - before}
                rows.append(told | {f"layer_{at}": values[i, place].item() for i, at in enumerate(self.layers)})
        return pd.DataFrame(rows)

    def plot(self, ax: "Axes | None" = None, prompt: SupportsIndex | None = None) -> "Axes":
        """Layer × token map: the mean over prompts by place, or that of one prompt by its tokens.

        Raises:
            InputError: there is no such prompt.
        """
        from ..plots.contributions import token_map

        if prompt is None:
            beyond = None if self.beyond_controls is None else self.beyond_controls.numpy()
            names = [str(place) for place in range(self.item_values.shape[2])]
            title = f"Tokens of {len(self.texts)} continuations: log-probability {self.effect:+.3f} nats on average"
            return token_map(
                self.values.numpy(), self.layers, names, title, beyond=beyond, controls=self.n_controls, ax=ax
            )
        at = as_integer(prompt, "prompt", least=0)
        if at >= len(self.texts):
            raise InputError(f"no prompt {at}: there are {len(self.texts)}")
        one = self.texts[at]
        values = self.item_values[at, :, : len(one.tokens)].numpy()
        change = (one.after - one.before).sum().item()
        return token_map(values, self.layers, one.tokens, f"Behind {one.prompt[-60:]!r}: {change:+.3f} nats", ax=ax)
