"""One demonstration, from which an edit is fitted, and one contrast, on which its effect is measured."""

from dataclasses import asdict, dataclass

from .._support.text_rows import has_half_character
from ..errors import DemonstrationError


@dataclass(frozen=True)
class Demonstration:
    """Three full texts about one prompt (docs/method.md 1.1).

    Attributes:
        neutral: the prompt.
        positive: prompt and wanted completion, such as the true answer.
        negative: prompt and unwanted completion, such as the hallucinated one.
    """

    neutral: str
    positive: str
    negative: str

    def check(self, what: str) -> None:
        """Refuse an empty text, a lone surrogate, and a positive equal to its negative.

        Raises:
            DemonstrationError: naming `what` and the text.
        """
        _refuse_empty(self, what)
        if self.positive == self.negative:
            raise DemonstrationError(f"{what}: positive and negative are the same text {self.positive!r}")


@dataclass(frozen=True)
class Contrast:
    """A prompt with two completions, which are appended verbatim (docs/method.md 6.2).

    Begin a completion with a space where the language needs one.

    Attributes:
        prompt: the text before.
        target: the completion that the edit should make likelier.
        foil: the one that it should make less likely.
    """

    prompt: str
    target: str
    foil: str

    def check(self, what: str) -> None:
        """Refuse an empty text, a lone surrogate, and a target equal to its foil.

        Raises:
            DemonstrationError: naming `what` and the text.
        """
        _refuse_empty(self, what)
        if self.target == self.foil:
            raise DemonstrationError(f"{what}: target and foil are the same text {self.target!r}")


def _refuse_empty(item: Demonstration | Contrast, what: str) -> None:
    for name, text in asdict(item).items():
        if not isinstance(text, str) or not text.strip():
            raise DemonstrationError(f"{what}: {name} is empty" if text == "" else f"{what}: {name} is {text!r}")
        if has_half_character(text):
            raise DemonstrationError(f"{what}: {name} holds half a character (a lone surrogate)")
