"""Prompts inside a tokenizer's chat template, which is a program of somebody else's: what it writes is looked at."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .._support.text_rows import shown
from ..errors import InputError
from .prompts import PromptTemplate

# What a chat template is tried with.
_TURN = {"role": "user", "content": "Who came second?"}


@dataclass(frozen=True)
class ChatPrompt:
    """A template inside a tokenizer's chat template: its prompt is what the user says, the answer the assistant's turn.

    Where an answer stands, and what is in front of it (a space, a line end, an empty thought), is read from the chat
    template's own rendering of the conversation with that answer (docs/method.md 6.1). White space in front of an
    answer is the template's: that of `completion` is left out.

    Attributes:
        template: what the user says.
        tokenizer: a Hugging Face tokenizer with a chat template.
    """

    template: PromptTemplate
    tokenizer: Any

    @property
    def stop(self) -> tuple[str, ...]:
        """Empty: the assistant ends its turn with EOS."""
        return ()

    def render(self, item: Mapping[str, str]) -> str:
        """The conversation up to where the assistant begins to write, which is what a generated answer follows.

        Raises:
            InputError: the chat template fails, or does not write what the user says.
        """
        return self._rendered([self._turn(item)], add_generation_prompt=True)

    def complete(self, answer: str) -> str:
        """What the chat template writes behind `render` up to the end of an answer that is given.

        Where a given answer does not stand behind what the assistant begins with, it is the answer alone.

        Raises:
            InputError: as `with_answers`.
        """
        turn = dict(_TURN)
        begun = self._rendered([turn], add_generation_prompt=True)
        before, (written,) = self._answers(turn, [answer])
        return (before.removeprefix(begun) if before.startswith(begun) else "") + written

    def with_answers(self, item: Mapping[str, str], answers: Iterable[str]) -> tuple[str, list[str]]:
        """The conversation up to where an answer begins, and each answer as the chat template writes it there.

        Raises:
            InputError: the chat template fails, does not write what the user says, does not tell where an answer
                begins, or changes one.
        """
        return self._answers(self._turn(item), answers)

    def check(self, *, answers: bool) -> None:
        """Refuse a chat template that cannot be used, before any work is done with it.

        Args:
            answers: whether it must tell where a given answer stands.

        Raises:
            InputError: as `with_answers`.
        """
        self._rendered([dict(_TURN)], add_generation_prompt=True)
        if answers:
            self._answers(dict(_TURN), ["It was Ann, not Bob."])

    def record(self) -> dict[str, Any]:
        """Everything that it is, for a file."""
        return {**self.template.record(), "chat_template": self.tokenizer.chat_template}

    def _turn(self, item: Mapping[str, str]) -> dict[str, str]:
        return {"role": "user", "content": self.template.turn(item)}

    def _answers(self, turn: dict[str, str], answers: Iterable[str]) -> tuple[str, list[str]]:
        before, after = self._around(turn)
        found = []
        for answer in answers:
            said = self.template.complete(answer).lstrip()
            written = self._rendered([turn, {"role": "assistant", "content": said}])
            ways = [way for way in (said, said.rstrip()) if written == f"{before}{way}{after}"]
            if not ways:
                raise InputError(
                    f"the tokenizer's chat template does not write the answer {shown(said)} as it is: give chat=False, "
                    "or a tokenizer with another chat template"
                )
            found.append(ways[0])
        return before, found

    def _around(self, turn: dict[str, str]) -> tuple[str, str]:
        """What the chat template writes before and after an answer, told by an answer that stands nowhere else."""
        mark = f"Mark {hashlib.sha256(turn['content'].encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
        parts = self._rendered([turn, {"role": "assistant", "content": mark}]).split(mark)
        if len(parts) != 2:
            raise InputError(
                f"the tokenizer's chat template writes an answer {len(parts) - 1} times as it is, expected once: give "
                "chat=False, or a tokenizer with another chat template"
            )
        return parts[0], parts[1]

    def _rendered(self, turns: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
        system = [{"role": "system", "content": self.template.system}] if self.template.system else []
        try:
            written = self.tokenizer.apply_chat_template(
                [*system, *turns], tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # the template is a program of somebody else's
            raise InputError(f"the tokenizer's chat template fails: {error}") from error
        # Many leave out the white space around what is said.
        for turn in (*system, turns[0]):
            if (said := turn["content"].strip()) not in written:
                raise InputError(
                    f"the tokenizer's chat template does not write what the {turn['role']} says, {shown(said)}, as it "
                    "is: give chat=False, or a tokenizer with another chat template"
                )
        return written


Chat = bool | str


def for_model(
    template: PromptTemplate, tokenizer: Any, chat: Chat = "auto", *, answers: bool = False
) -> PromptTemplate | ChatPrompt:
    """The template, inside the model's chat template if it has one ("auto"), always (True) or never (False).

    Args:
        template: the prompt.
        tokenizer: the model's.
        chat: see above.
        answers: whether answers are to be scored behind it, for which the chat template must tell where they stand.

    Raises:
        InputError: a chat template is asked for and there is none, it fails or does not write what the user says, it
            does not tell where answers stand, or an unknown `chat`.
    """
    if chat != "auto" and not isinstance(chat, bool):
        raise InputError(f"unknown chat {chat!r}: expected 'auto', True or False")
    has_one = getattr(tokenizer, "chat_template", None) is not None
    if chat is True and not has_one:
        raise InputError("chat=True needs a tokenizer with a chat template, and this one has none")
    if chat is False or not has_one:
        return template
    inside = ChatPrompt(template, tokenizer)
    inside.check(answers=answers)
    return inside
