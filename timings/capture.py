"""What reading demonstrations costs, as ratios within one run.

    python timings/capture.py [--data ../shared/data/halueval/qa_data.jsonl] [--knowledge] [--limit 48] [--rounds 5]

A random Llama captures `mlp_out` in all layers of HaluEval's demonstrations. Three ways take turns: `sl.capture`; one
forward pass for each of the three texts, which stops behind the last layer that is read, as capture does; and the bare
forward passes of capture's own batches, without a hook, to their end. Printed are medians and quartiles of the ratios,
the tokens of each way, and how far the statistics of the first two are apart. Texts are encoded beforehand in all ways
but the first. --knowledge puts HaluEval's passage in front of every question, as a longer prompt.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

import sea_lens as sl
from sea_lens.models.cached_pass import cached_pass, selected
from sea_lens.models.lens import Lens
from sea_lens.models.reading import Reading
from sea_lens.models.tokens import encode
from sea_lens.texts.readers import QUESTION, QUESTION_WITH_KNOWLEDGE

HEADS = 8
VOCABULARY = 8000
DATA = Path(__file__).parents[2] / "shared" / "data" / "halueval" / "qa_data.jsonl"


def random_model(backend: str, texts: Sequence[str], layers: int, width: int) -> Any:
    """A Llama as `write_model` writes it."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder, texts, layers, width)
        return sl.load_model(folder, backend, device="cpu", dtype="float32")


def write_model(folder: str, texts: Sequence[str], layers: int, width: int) -> None:
    """Write a Llama with random weights, and a tokenizer of pairs of bytes that was trained on these texts."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        show_progress=False,
        initial_alphabet=alphabet,
    )
    inner.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


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
    """The passes of a plan's batches with nothing read of them."""
    with torch.no_grad():
        for batch in batches:
            state = None
            if batch.stems is not None:
                _, state = cached_pass(lens, batch.stems.tokens, batch.stems.mask, None, renamed=batch.renamed)
            for rows in batch.others:
                if state is None:
                    lens.forward(rows.tokens, rows.mask)
                else:
                    of_rows = selected(state, rows.parents)
                    cached_pass(lens, rows.tokens, rows.mask, of_rows, renamed=batch.renamed)


def quartiles(over: Sequence[float], under: Sequence[float]) -> str:
    """Median and quartiles of the ratios, round by round."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(over, under, strict=True)], n=4)
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def compare(ways: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Processor times of several ways, which take turns, in another order every round."""
    times: list[list[float]] = [[] for _ in ways]
    order = random.Random(0)
    for _ in range(rounds):
        for place in order.sample(range(len(ways)), len(ways)):
            start = time.thread_time()
            ways[place]()
            times[place].append(time.thread_time() - start)
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="HaluEval's qa_data.json")
    parser.add_argument("--knowledge", action="store_true", help="the passage in front of every question")
    parser.add_argument("--backend", default="auto", help="auto (hooked where there is one), hooked or bridge")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--limit", type=int, default=48, help="demonstrations")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 48])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
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
        captured, one_by_one, bare = compare(ways, arguments.rounds)
        seconds = statistics.median(captured)
        print(f"batch_size {size}: {run} tokens with padding in {passes} passes, {seconds:.2f} s")
        print(f"    one text at a time / capture {quartiles(one_by_one, captured)}")
        print(f"    bare passes / capture        {quartiles(bare, captured)}")
        print(f"    means of activations are {apart:.0e} of the largest apart")


if __name__ == "__main__":
    main()
