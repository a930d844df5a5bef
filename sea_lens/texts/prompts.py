"""Prompts as data: templates by name, from a file, or made by hand, with worked examples.

The named templates lie in `prompt_templates.json`. A file of one's own holds one such object.
"""

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
        instruction: a text in front of the examples.
        stop: a generated answer ends before the first of these.
        source: where it comes from.
        system: a system prompt: a turn of its own in a chat template, else in front of everything.

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
    system: str = ""

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
        """The prompt of an item, with system prompt, instruction and examples in front."""
        return self.separator.join(part for part in (self.system, self.turn(item)) if part)

    def turn(self, item: Mapping[str, str]) -> str:
        """`render` without the system prompt: what the user says in a chat."""
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
        # As before there were system prompts, where there is none.
        said = {name: value for name, value in asdict(self).items() if name != "system" or value}
        return {**said, "chat_template": None}


@cache
def named_prompts() -> dict[str, PromptTemplate]:
    """The templates that have names."""
    content = json.loads(
        files(__package__ or "sea_lens.texts").joinpath("prompt_templates.json").read_text(encoding="utf-8")
    )
    return {name: PromptTemplate.from_json(template, name) for name, template in content.items()}
