"""What reading demonstrations costs, as ratios within one run.

    python timings/capture.py [--data ../shared/data/halueval/qa_data.jsonl] [--knowledge] [--limit 48] [--rounds 5]

A random Llama captures `mlp_out` in all layers of HaluEval's demonstrations. Three ways take turns: `sl.capture`; one
forward pass for each of the three texts, which stops behind the last layer that is read, as capture does; and the bare
forward passes of capture's own batches, without a hook, to their end. Printed are medians and quartiles of the ratios,
the tokens of each way, and how far the statistics of the first two are apart. Texts are encoded beforehand in all ways
but the first. --knowledge puts HaluEval's passage in front of every question, as a longer prompt.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import DATA, Table, random_llama, take_turns
from transformers.utils.logging import disable_progress_bar

import sea_lens as sl
from sea_lens.models.cached_pass import cached_pass, selected
from sea_lens.models.lens import Lens
from sea_lens.models.reading import Reading
from sea_lens.models.tokens import encode
from sea_lens.texts.readers import QUESTION, QUESTION_WITH_KNOWLEDGE

HEADS = 8
VOCABULARY = 8000


def random_model(backend: str, texts: Sequence[str], layers: int, width: int) -> Any:
    """A Llama with random weights, and a tokenizer of pairs of bytes that was trained on these texts."""
    with tempfile.TemporaryDirectory() as folder:
        random_llama(folder, texts, layers, width, HEADS, vocabulary=VOCABULARY)
        return sl.load_model(folder, backend, device="cpu", dtype="float32")


def texts_of(demonstrations: sl.Demonstrations) -> list[str]:
    """All texts, three for each demonstration."""
    return [text for one in demonstrations for text in (one.neutral, one.positive, one.negative)]


def one_text_at_a_time(lens: Lens, texts: Sequence[list[int]], names: Sequence[str]) -> list[torch.Tensor]:
    """The activation of each text's last token in all layers: (texts, d) for each of them."""
    found = []
    for text in texts:
        tokens = torch.tensor([text])
        with torch.no_grad():
            seen = lens.read(tokens, torch.ones_like(tokens), names, reduce=lambda x, name: x[0, -1])
        found.append([seen[name] for name in names])
    return [torch.stack(layer) for layer in zip(*found, strict=True)]


def bare_forwards(lens: Lens, batches: Sequence[Any]) -> None:
    """The passes of a plan's batches with nothing read of them, logits and all, as a model makes them."""
    with torch.no_grad():
        for batch in batches:
            state = None
            if batch.stems is not None:
                found, state = cached_pass(lens, batch.stems.tokens, batch.stems.mask, None, renamed=batch.renamed)
                found.whole()
            for rows in batch.others:
                if state is None:
                    lens.forward(rows.tokens, rows.mask)
                else:
                    of_rows = selected(state, rows.parents)
                    cached_pass(lens, rows.tokens, rows.mask, of_rows, renamed=batch.renamed)[0].whole()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=DATA / "halueval" / "qa_data.jsonl", help="HaluEval's qa_data.json"
    )
    parser.add_argument("--knowledge", action="store_true", help="the passage in front of every question")
    parser.add_argument("--backend", default="auto", help="auto (hooked where there is one), hooked or bridge")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--limit", type=int, default=48, help="demonstrations")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 48])
    parser.add_argument("--rounds", type=int, default=5)
    Table.add_option(parser)
    arguments = parser.parse_args()
    table = Table(arguments.json)
    torch.set_num_threads(1)
    disable_progress_bar()
    template = QUESTION_WITH_KNOWLEDGE if arguments.knowledge else QUESTION
    every = sl.Demonstrations.from_halueval(arguments.data, template=template)
    model = random_model(arguments.backend, texts_of(every), arguments.layers, arguments.width)
    demonstrations, lens = sl.Demonstrations(every[: arguments.limit]), Lens.of(model)
    texts = [encode(lens, text) for text in texts_of(demonstrations)]
    layers = range(lens.n_layers)
    names = [lens.point("mlp_out", layer) for layer in layers]
    print(
        f"{type(model).__name__}, {lens.n_layers} layers, width {lens.d_model}, {len(demonstrations)} demonstrations, "
        f"{sum(map(len, texts))} tokens in their texts, {arguments.rounds} rounds"
    )
    alone = one_text_at_a_time(lens, texts, names)
    for size in arguments.batch_sizes:
        capture = partial(sl.capture, model, demonstrations, batch_size=size, progress=False)
        covariance = capture()
        apart = max(
            float((covariance.means(layer)[kind][0] - x[kind::3].double().mean(0)).abs().max() / x.abs().max())
            for layer, x in zip(layers, alone, strict=True)
            for kind in range(3)
        )
        plan = Reading("mlp_out").plan(lens, demonstrations, layers, batch_size=size)
        batches = [plan.prepared(number) for number in range(len(plan.batches))]
        run = sum(rows.tokens.numel() for one in batches for rows in (one.stems, *one.others) if rows is not None)
        passes = sum(len(one.others) + (one.stems is not None) for one in batches)
        ways = [capture, partial(one_text_at_a_time, lens, texts, names), partial(bare_forwards, lens, batches)]
        captured, one_by_one, bare = take_turns(ways, arguments.rounds)
        seconds = statistics.median(captured)
        print(f"batch_size {size}: {run} tokens with padding in {passes} passes, {seconds:.2f} s")
        texts_are = "questions behind a passage" if arguments.knowledge else "questions"
        name = f"capture, HaluEval's {texts_are}, {lens.n_layers} layers, width {lens.d_model}, {type(model).__name__}"
        note = f"batch_size {size}, means {apart:.0e} of the largest apart"
        table.ratio(f"{name}: time of one text at a time / capture", one_by_one, captured, "at least 1.8", note)
        table.ratio(f"{name}: time of bare forward passes / capture", bare, captured, "at least 1.0", note)


if __name__ == "__main__":
    main()
