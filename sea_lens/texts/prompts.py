"""Prompts as data: templates by name, from a file, or made by hand, with worked examples and chat templates.

The named templates lie in `prompt_templates.json`. A file of one's own holds one such object.
"""

import hashlib
import json
import os
import string
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.resources import files
from typing import Any

from .._support.text_rows import ending, read_json, shown
from ..errors import FileError, InputError

ANSWER = "answer"


def check_placeholders(name: str, template: str, allowed: Iterable[str]) -> None:
    """Refuse a format string that uses no field, or cannot be filled in with texts of these names alone.

    Raises:
        InputError: naming the template.
    """
    known = set(allowed)
    _refuse_format_specifications(name, template)
    try:
        used = {part for _, part, _, _ in string.Formatter().parse(template) if part is not None}
        if used and used <= known:
            template.format(**dict.fromkeys(known, "text"))
    except (ValueError, IndexError, KeyError, AttributeError) as error:
        raise InputError(f"{name} {template!r} is not a format string for texts: {error}") from error
    if not used or not used <= known:
        raise InputError(f"{name} {template!r} must use some of {sorted(known)} and nothing else")


def _refuse_format_specifications(name: str, template: str) -> None:
    """A width such as {question:1000000000} would fill the memory; a text has no need of one."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        return  # refused as no format string where the template is used
    for _, place, specification, conversion in parts:
        if specification or conversion:
            written = (f"!{conversion}" if conversion else "") + (f":{specification}" if specification else "")
            raise InputError(f"{name} {shown(template)}: expected {{{place}}} alone, without {shown(written)}")


@dataclass(frozen=True)
class PromptTemplate:
    r"""How a question is put to a model, and how an answer follows.

    Attributes:
        name: what results call it.
        prompt: a format string over an item's fields, such as "Q: {question}\nA:".
        completion: a format string over {answer}, appended to the prompt verbatim.
        examples: worked examples in front (few-shot): the fields of the prompt and "answer".
        separator: between examples, and between the last one and the prompt.
        instruction: a text in front of everything.
        stop: a generated answer ends before the first of these.
        source: where it comes from.

    Example:
        >>> template = sl.PromptTemplate("short", "Q: {question}\nA:")
        >>> template.render({"question": "Why?"}) + template.complete("Because.")
        'Q: Why?\nA: Because.'
    """

    name: str
    prompt: str
    completion: str = " {answer}"
    examples: tuple[Mapping[str, str], ...] = ()
    separator: str = "\n\n"
    instruction: str = ""
    stop: tuple[str, ...] = ()
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        _refuse_format_specifications("prompt", self.prompt)
        _refuse_format_specifications("completion", self.completion)

    @classmethod
    def of(cls, given: "PromptTemplate | str | os.PathLike[str]") -> "PromptTemplate":
        """The template itself, a named one, or the one in a JSON file.

        Raises:
            InputError: a name that is neither.
            FileError: a file that holds no template.
        """
        if isinstance(given, PromptTemplate):
            return given
        if not isinstance(given, (str, os.PathLike)):
            raise InputError(f"expected a prompt's name, a .json file or a PromptTemplate, got {given!r}")
        if given in named_prompts():
            return named_prompts()[str(given)]
        if ending(given) != ".json":
            known = ", ".join(named_prompts())
            raise InputError(f"unknown prompt {shown(str(given))}: expected a .json file, or one of {known}")
        return cls.from_json(read_json(given), os.fspath(given))

    @classmethod
    def from_json(cls, content: Any, name: str) -> "PromptTemplate":
        """The template that a JSON object describes.

        Raises:
            FileError: an object with other fields, or fields of other types; `name` says of what.
        """
        known = {one.name for one in fields(cls)}
        if not isinstance(content, dict) or not {"prompt"} <= set(content) <= known:
            raise FileError(f"{name}: expected an object with 'prompt' and perhaps {sorted(known - {'prompt'})}")
        examples, stop = content.get("examples", []), content.get("stop", [])
        texts = [value for key, value in content.items() if key not in ("examples", "stop")]
        shots = [shot for shot in examples if isinstance(shot, dict)] if isinstance(examples, list) else None
        if not isinstance(stop, list) or shots is None or len(shots) < len(examples):
            raise FileError(f"{name}: expected 'examples' to be a list of objects and 'stop' a list of texts")
        if not all(isinstance(text, str) for text in [*texts, *stop, *(v for shot in shots for v in shot.values())]):
            raise FileError(f"{name}: every value must be a text")
        try:
            return cls(**{"name": name, **content, "examples": tuple(shots), "stop": tuple(stop)})
        except InputError as error:
            raise FileError(f"{name}: {error}") from error

    def check(self, allowed: Iterable[str]) -> None:
        """Refuse a template before any work is done with it.

        Raises:
            InputError: it asks for other fields than an item has, an example lacks a field, or a stop text is empty.
        """
        known = set(allowed)
        check_placeholders("prompt", self.prompt, known)
        check_placeholders("completion", self.completion, {ANSWER})
        if "" in self.stop:
            raise InputError(f"prompt {self.name!r} stops at an empty text, which is everywhere")
        needed = {part for _, part, _, _ in string.Formatter().parse(self.prompt) if part is not None} | {ANSWER}
        for number, example in enumerate(self.examples, start=1):
            if missing := needed - set(example):
                raise InputError(f"example {number} of prompt {self.name!r} lacks {sorted(missing)}")

    def render(self, item: Mapping[str, str]) -> str:
        """The prompt of an item, with the instruction and the examples in front."""
        shots = [self.prompt.format(**example) + self.completion.format(**example) for example in self.examples]
        parts = [self.instruction, *shots, self.prompt.format(**item)]
        return self.separator.join(part for part in parts if part)

    def complete(self, answer: str) -> str:
        """An answer as it follows the prompt."""
        return self.completion.format(answer=answer)

    def with_answers(self, item: Mapping[str, str], answers: Iterable[str]) -> tuple[str, list[str]]:
        """The prompt of an item, and each answer as it follows the prompt."""
        return self.render(item), [self.complete(answer) for answer in answers]

    def record(self) -> dict[str, Any]:
        """Everything that it is, for a file."""
        return {**asdict(self), "chat_template": None}


@dataclass(frozen=True)
class ChatPrompt:
    """A template inside a tokenizer's chat template: the whole prompt is the user's turn, the answer the assistant's.

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
            InputError: the chat template fails.
        """
        return self._rendered([self._turn(item)], add_generation_prompt=True)

    def complete(self, answer: str) -> str:
        """What the chat template writes behind `render` up to the end of an answer that is given.

        Where a given answer does not stand behind what the assistant begins with, it is the answer alone.

        Raises:
            InputError: as `with_answers`.
        """
        turn = {"role": "user", "content": "Who came second?"}
        begun = self._rendered([turn], add_generation_prompt=True)
        before, (written,) = self._answers(turn, [answer])
        return (before.removeprefix(begun) if before.startswith(begun) else "") + written

    def with_answers(self, item: Mapping[str, str], answers: Iterable[str]) -> tuple[str, list[str]]:
        """The conversation up to where an answer begins, and each answer as the chat template writes it there.

        Raises:
            InputError: the chat template fails, does not tell where an answer begins, or changes one.
        """
        return self._answers(self._turn(item), answers)

    def check(self) -> None:
        """Refuse a chat template that does not tell where an answer stands, before any work is done with it.

        Raises:
            InputError: as `with_answers`.
        """
        self._answers({"role": "user", "content": "Who came second?"}, ["It was Ann, not Bob."])

    def record(self) -> dict[str, Any]:
        """Everything that it is, for a file."""
        return {**self.template.record(), "chat_template": self.tokenizer.chat_template}

    def _turn(self, item: Mapping[str, str]) -> dict[str, str]:
        return {"role": "user", "content": self.template.render(item)}

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
        try:
            return self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # the template is a program of somebody else's
            raise InputError(f"the tokenizer's chat template fails: {error}") from error


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
        InputError: a chat template is asked for and there is none, it does not tell where answers stand, or an unknown
            `chat`.
    """
    if chat != "auto" and not isinstance(chat, bool):
        raise InputError(f"unknown chat {chat!r}: expected 'auto', True or False")
    has_one = getattr(tokenizer, "chat_template", None) is not None
    if chat is True and not has_one:
        raise InputError("chat=True needs a tokenizer with a chat template, and this one has none")
    if chat is False or not has_one:
        return template
    inside = ChatPrompt(template, tokenizer)
    if answers:
        inside.check()
    return inside


@cache
def named_prompts() -> dict[str, PromptTemplate]:
    """The templates that have names."""
    content = json.loads(
        files(__package__ or "sea_lens.texts").joinpath("prompt_templates.json").read_text(encoding="utf-8")
    )
    return {name: PromptTemplate.from_json(template, name) for name, template in content.items()}
