"""A Hugging Face model and its tokenizer, from the hub by name or from a local folder."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._support.arguments import listed
from ..errors import FileError, SeaLensError, SeaLensWarning, UnsupportedModelError
from .configuration import text_config
from .offload import offload
from .placement import Placement
from .spreading import spread


@dataclass(frozen=True)
class Unmatched:
    """Names of weights that only one of a folder and the model of its configuration has.

    Attributes:
        missing: those that the model needs. Hugging Face draws them at random.
        unexpected: those that the folder has. Hugging Face leaves them out.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def refuse(self, name: str) -> None:
        """Refuse a model a part of which was drawn at random.

        Raises:
            FileError: naming the weights.
        """
        if self.missing:
            raise FileError(
                f"model {name!r}: the weights lack {listed(self.missing)}, which would be drawn at random: expected "
                f"all weights of the model that config.json describes"
            )

    def warn(self, name: str) -> None:
        """Tell of weights that were left out."""
        if self.unexpected:
            warnings.warn(
                f"model {name!r}: Hugging Face leaves out weights of the folder that the model of config.json does not "
                f"have: {listed(self.unexpected)}",
                SeaLensWarning,
                stacklevel=3,
            )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what TransformerLens and its dependencies say on every load and a user cannot act on."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    # Says of every weight that is brought for each pass that it is somewhere else.
    dispatch = logging.getLogger("accelerate.big_modeling")
    level = dispatch.level
    dispatch.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        dispatch.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def failures_named(name: str, done: str = "loaded") -> Iterator[None]:
    """Whatever goes wrong becomes an error of sea_lens's that names the model, and what was to be done with it.

    Raises:
        UnsupportedModelError: with the reason.
    """
    try:
        yield
    except SeaLensError:
        raise
    # TransformerLens meets a model that it does not know with whatever goes wrong first.
    except Exception as error:
        lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
        # Torch names what does not fit below a heading.
        reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        raise UnsupportedModelError(f"model {name!r} could not be {done}: {reason}") from error


@contextlib.contextmanager
def _read_if_converted(name: str, dtype: torch.dtype | None) -> Iterator[None]:
    """Let transformers read weights that it converts, one after the other, where it would map their file into memory.

    Pages of a mapped file stay in memory until all weights are converted. Weights that are not converted stay where
    they are in the file, and are best mapped.
    """
    import transformers

    if dtype in (None, getattr(text_config(transformers.AutoConfig.from_pretrained(name)), "dtype", None)):
        yield
        return
    modeling: Any = transformers.modeling_utils
    opened = modeling.safe_open

    def read(*args: Any, **options: Any) -> Any:
        return opened(*args, **({**options, "backend": "pread"} if "backend" in options else options))

    try:
        modeling.safe_open = read
        yield
    finally:
        modeling.safe_open = opened


def load_huggingface(
    name: str, dtype: torch.dtype | None, placed: Placement | None = None
) -> tuple[Any, Any, Unmatched]:
    """The Hugging Face model, its tokenizer, and the weights that only one of folder and model has.

    Args:
        name: of a hub model, or a folder.
        dtype: None for what the weights are stored in.
        placed: where to put the model; by default the CPU.

    Raises:
        UnsupportedModelError: one of them cannot be loaded; says why.
    """
    from transformers import AutoModelForCausalLM

    devices: dict[str, torch.device] = {}
    with failures_named(name), _read_if_converted(name, dtype):
        if placed is not None and placed.device_map is not None:
            placed, devices = spread(name, placed, dtype)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype or "auto",
            attn_implementation="eager",
            output_loading_info=True,
            # Told below, with the shapes.
            ignore_mismatched_sizes=True,
            **({} if placed is None else placed.options),
        )
        model, found = loaded
        if placed is not None and placed.device is not None and model.device != placed.device:
            model = model.to(placed.device)
        if devices:
            offload(model, devices)
    if found["mismatched_keys"]:
        weight, given, expected = min(found["mismatched_keys"])
        raise UnsupportedModelError(
            f"model {name!r}: weight {weight!r} has shape {tuple(given)}, the model of config.json needs "
            f"{tuple(expected)}"
        )
    unmatched = Unmatched(*(tuple(sorted(found[f"{kind}_keys"])) for kind in ("missing", "unexpected")))
    return model, load_tokenizer(name), unmatched


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The tokenizer of a hub model, of a revision of it, or of a folder.

    Raises:
        UnsupportedModelError: it cannot be loaded.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision or "main")
    # Files that are something else are met with whatever goes wrong first.
    except Exception as error:
        raise UnsupportedModelError(f"model {name!r} has no tokenizer that can be read, so texts cannot be") from error
    config = Path(name) / "tokenizer_config.json"
    generic = config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class")
    if generic in ("TokenizersBackend", "PreTrainedTokenizerFast") and type(tokenizer) is not PreTrainedTokenizerFast:
        # transformers reads any tokenizer beside a Qwen 2 model as Qwen's own; the folder says that it is not.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(name)
    return tokenizer
