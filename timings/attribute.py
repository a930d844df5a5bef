"""What one `sea-lens attribute` does, in counts that no load on the machine can change.

    python timings/attribute.py [--contrasts 24] [--demonstrations 40] [--without-demonstrations]

An edit of the shipped model, contrasts of its dev split and the first demonstrations are written to files; the command
then runs in this process with counters on the tokenizer and on the model. From its start, loading the model included,
they count every text that is tokenised and every forward pass, also one that a hook ends early. Tokens include padding.
"""

import argparse
import contextlib
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformer_lens
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast

import sea_lens as sl


@dataclass
class Counts:
    """What has happened so far."""

    tokeniser_calls: int = 0
    texts: int = 0
    distinct: set[str] = field(default_factory=set)
    passes: int = 0
    ended_early: int = 0
    rows: int = 0
    tokens: int = 0
    inside: bool = False


def counting_encoder(counts: Counts, encode: Callable[..., Any]) -> Callable[..., Any]:
    """The tokenizer's own encoding, which every way of tokenising goes through, with a counter in front."""

    def counted(self: Any, text: Any, *arguments: Any, **options: Any) -> Any:
        texts = [text] if isinstance(text, str) else list(text)
        counts.tokeniser_calls += 1
        counts.texts += len(texts)
        counts.distinct.update(map(str, texts))
        return encode(self, text, *arguments, **options)

    return counted


def counting_forward(counts: Counts, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A model's forward pass with a counter in front, which counts no pass inside another."""

    def counted(self: Any, input: Any, *arguments: Any, **options: Any) -> Any:
        if counts.inside:
            return forward(self, input, *arguments, **options)
        if not isinstance(input, torch.Tensor):
            raise TypeError(f"expected a pass over a tensor of tokens, got {type(input).__name__}")
        counts.passes += 1
        counts.rows += input.shape[0]
        counts.tokens += input.shape[0] * input.shape[1]
        counts.inside = True
        try:
            return forward(self, input, *arguments, **options)
        except BaseException:
            counts.ended_early += 1
            raise
        finally:
            counts.inside = False

    return counted


@contextlib.contextmanager
def counters() -> Iterator[Counts]:
    """Counters on the classes of fast tokenizers and of TransformerLens's models, for the length of a context."""
    counts = Counts()
    # TransformerLens 4 has the bridge alone.
    models = [TransformerBridge, getattr(transformer_lens, "HookedTransformer", None)]
    with contextlib.ExitStack() as stack:
        encoder = counting_encoder(counts, PreTrainedTokenizerFast._encode_plus)
        stack.enter_context(patch.object(PreTrainedTokenizerFast, "_encode_plus", encoder))
        for model in models:
            if model is not None:
                stack.enter_context(patch.object(model, "forward", counting_forward(counts, model.forward)))
        yield counts


def run_command(arguments: list[str], log: Path) -> None:
    """Run `sea-lens` in this process; what it prints goes to a file.

    Raises:
        SystemExit: it failed; with what it had printed.
    """
    status: object = 0
    with (
        log.open("w", encoding="utf-8") as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
        patch.object(sys, "argv", ["sea-lens", *arguments]),
    ):
        try:
            runpy.run_module("sea_lens", run_name="__main__")
        except SystemExit as ending:
            status = ending.code
    if status:
        raise SystemExit(f"sea-lens {' '.join(arguments)} failed:\n{log.read_text(encoding='utf-8')}")


def main() -> None:
    """Write the files, run the command, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--contrasts", type=int, default=24)
    parser.add_argument("--demonstrations", type=int, default=40, help="the first of them; more than there are for all")
    parser.add_argument("--without-demonstrations", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bed = sl.testbed.load()
    edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=8)
    contrasts = bed.contrasts["dev"][: options.contrasts]
    demonstrations = bed.demonstrations[: options.demonstrations]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        edit.save(folder / "edit.safetensors")
        contrasts.to_jsonl(folder / "contrasts.jsonl")
        demonstrations.to_jsonl(folder / "demonstrations.jsonl")
        arguments = ["attribute", "--model", "testbed", "--edit", str(folder / "edit.safetensors")]
        arguments += ["--contrasts", str(folder / "contrasts.jsonl")]
        if not options.without_demonstrations:
            arguments += ["--demonstrations", str(folder / "demonstrations.jsonl")]
        arguments += ["--layers", "last-2", "--strength", "1.5", "--out", str(folder / "out")]
        with counters() as counts:
            start = time.perf_counter()
            run_command(arguments, folder / "log.txt")
            taken = time.perf_counter() - start
        if not (folder / "out" / "results.json").is_file():
            raise SystemExit("the command wrote no results.json")
    if not counts.texts or not counts.passes:
        raise SystemExit("nothing was counted: the command reads texts or runs the model in some other way")

    of = "no" if options.without_demonstrations else str(len(demonstrations))
    print(f"sea_lens in {Path(sl.__file__).parent}, {len(contrasts)} contrasts, {of} demonstrations")
    rows = {
        "tokeniser calls": counts.tokeniser_calls,
        "texts tokenised": counts.texts,
        "distinct texts": len(counts.distinct),
        "forward passes": counts.passes,
        "  ended early": counts.ended_early,
        "rows": counts.rows,
        "tokens": counts.tokens,
    }
    for name, count in rows.items():
        print(f"{name:16}{count:10d}")
    print(f"{'wall seconds':16}{taken:10.1f}")


if __name__ == "__main__":
    main()
