"""A provider for Inspect (extra `inspect`): an edited model answers Inspect's tasks.

    inspect eval task.py --model sea_lens/gpt2 -M edit=edit.safetensors

Inspect finds `sea_lens` by its entry point; imports inspect_ai, so nothing else may import it.
"""

import asyncio
from typing import Any

from inspect_ai.model import (  # pyright: ignore[reportMissingImports]
    ChatCompletionChoice,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    modelapi,
)

from ..edits.generation import generate
from ..errors import InputError
from ..methods.loading import load_edit
from ..models.lens import Lens
from ..models.load import load_model

_NEW_TOKENS = 256


class EditedAPI(ModelAPI):
    """A TransformerLens model with an edit in it whenever it writes.

    Args:
        model_name: Hugging Face name or folder.
        base_url, api_key, config: as Inspect gives them; the first two are of no use here.
        options: `edit`, a file; `layers`, `strength`, `combine` and `positions` as in `Edit.applied`; all others go to
            `sl.load_model`.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008
        **options: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        path = options.pop("edit", None)
        self._edit = None if path is None else load_edit(path)
        names = ("layers", "strength", "combine", "positions")
        self._where = {name: options.pop(name) for name in names if name in options}
        self._model = load_model(model_name, **options)
        if self._edit is not None:
            self._edit.check(self._model, **self._where)

    def max_connections(self) -> int:
        """One: the model writes one text at a time."""
        return 1

    async def generate(self, input: list[Any], tools: list[Any], tool_choice: Any, config: Any) -> ModelOutput:
        """What the model writes behind a conversation.

        Raises:
            InputError: tools are given, or the model has no chat template for more than one message.
        """
        if tools:
            raise InputError("an edited model calls no tools: expected a task without them")
        sampled = config.temperature if config.temperature is not None else 0.0
        options = {
            "max_new_tokens": config.max_tokens or _NEW_TOKENS,
            "temperature": sampled,
            "stop": config.stop_seqs or (),
            "seed": config.seed or 0,
        }
        if sampled:
            options |= {name: value for name in ("top_p", "top_k") if (value := getattr(config, name)) is not None}
        prompt = self._prompt(input)
        # Of a chat template BOS is a part, and Inspect's loop goes on meanwhile.
        text = await asyncio.to_thread(
            lambda: generate(self._model, [prompt], self._edit, **self._where, **options)[0]  # type: ignore[arg-type]
        )
        message = ChatMessageAssistant(content=text, model=self.model_name, source="generate")
        return ModelOutput(model=self.model_name, choices=[ChatCompletionChoice(message=message, stop_reason="stop")])

    def _prompt(self, messages: list[Any]) -> Any:
        """Token ids of the conversation by the chat template, or the text of a single message."""
        tokenizer = Lens.of(self._model).tokenizer
        turns = [{"role": one.role, "content": one.text} for one in messages]
        if getattr(tokenizer, "chat_template", None):
            return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
        if len(turns) != 1:
            raise InputError(
                f"{self.model_name} has no chat template: expected a task with one message, got {len(turns)}"
            )
        return turns[0]["content"]


@modelapi(name="sea_lens")
def sea_lens() -> type[ModelAPI]:
    """What Inspect asks for."""
    return EditedAPI
