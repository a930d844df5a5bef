"""What the measurements share: random models, ratios with quartiles, peaks of memory, rows that `bench.py` collects."""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

DATA = Path(__file__).parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Row:
    """One number of the table.

    Attributes:
        what: was measured, and against what.
        value: a ratio's median over rounds, or one number.
        low, high: quartiles over rounds, where there were several.
        wanted: what the value must be, as "at least 10" or "at most 1.05"; empty where nothing is promised.
        note: what else a reader should know.
    """

    what: str
    value: float
    low: float | None = None
    high: float | None = None
    wanted: str = ""
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the value is as it must be; None where nothing is promised."""
        if not self.wanted:
            return None
        word, bound = self.wanted.rsplit(" ", 1)
        return self.value >= float(bound) if word == "at least" else self.value <= float(bound)

    def __str__(self) -> str:
        spread = "" if self.low is None else f" [{self.low:.3g}, {self.high:.3g}]"
        wanted = "" if not self.wanted else f" ({self.wanted}: {'holds' if self.holds else 'DOES NOT HOLD'})"
        return f"{self.what}: {self.value:.3g}{spread}{wanted}{'; ' + self.note if self.note else ''}"


class Table:
    """Rows of one script, printed as they come and written where `--json` says."""

    def __init__(self, path: Path | None) -> None:
        self._path, self.rows = path, list[Row]()

    @staticmethod
    def add_option(parser: argparse.ArgumentParser) -> None:
        """`--json`."""
        parser.add_argument("--json", type=Path, default=None, help="write the rows to this file, too")

    def ratio(self, what: str, over: Sequence[float], under: Sequence[float], wanted: str = "", note: str = "") -> Row:
        """Median and quartiles of the ratios, round by round."""
        ratios = [a / b for a, b in zip(over, under, strict=True)]
        if len(ratios) == 1:
            return self.number(what, ratios[0], wanted, note)
        low, middle, high = statistics.quantiles(ratios, n=4)
        return self._added(Row(what, middle, low, high, wanted, note))

    def number(self, what: str, value: float, wanted: str = "", note: str = "") -> Row:
        """One number."""
        return self._added(Row(what, value, wanted=wanted, note=note))

    def _added(self, row: Row) -> Row:
        print(row, flush=True)
        self.rows.append(row)
        if self._path is not None:
            self._path.write_text(json.dumps([asdict(row) for row in self.rows]), encoding="utf-8")
        return row


def take_turns(
    ways: Sequence[Callable[[], object]],
    rounds: int,
    within: Sequence[Callable[[], AbstractContextManager[Any]]] = (),
) -> list[list[float]]:
    """Processor times of this thread in each of several ways, which take turns, in another order every round.

    Args:
        ways: what is timed.
        rounds: how often.
        within: a context for each way, entered and left outside the timed span; none by default.
    """
    times: list[list[float]] = [[] for _ in ways]
    order = random.Random(0)
    contexts = within or [nullcontext for _ in ways]
    for _ in range(rounds):
        for place in order.sample(range(len(ways)), len(ways)):
            with contexts[place]():
                start = time.thread_time()
                ways[place]()
                times[place].append(time.thread_time() - start)
    return times


class Peak:
    """Peak memory of a span in GiB: what this process held at most, and what the accelerator did (Linux)."""

    def __enter__(self) -> "Peak":
        # Forgets the peak so far.
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self.before = resident("VmRSS")
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._start
        self.host = resident("VmHWM")
        self.device = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def resident(name: str) -> float:
    """GiB that this process holds (VmRSS) or has held at most (VmHWM), and none that started it (Linux)."""
    # What getrusage says is handed on from a process to those that it starts.
    return int(Path("/proc/self/status").read_text(encoding="utf-8").split(f"{name}:")[1].split()[0]) / 2**20


def random_llama(
    folder: str | Path,
    texts: Sequence[str],
    layers: int,
    width: int,
    heads: int,
    *,
    inner_width: int | None = None,
    key_value_heads: int | None = None,
    vocabulary: int = 8000,
    context: int = 2048,
    device: str = "cpu",
    dtype: str = "float32",
) -> None:
    """Write a Llama with random weights, and a tokenizer of pairs of bytes that is trained on these texts.

    Args:
        folder: where.
        texts: which the tokenizer learns its words from, up to 8,000 of them; without any it knows bytes.
        layers, width, heads, inner_width, key_value_heads, vocabulary, context: of the configuration; the inner width
            is three times the width by default.
        device, dtype: that the weights are made on and in.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    config = AutoConfig.for_model(
        "llama",
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=inner_width or 3 * width,
        num_key_value_heads=key_value_heads or heads,
        vocab_size=vocabulary,
        max_position_embeddings=context,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocabulary, 8000),
        special_tokens=["<pad>", "<s>", "</s>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    processor = platform.processor() or platform.machine()
    if (information := Path("/proc/cpuinfo")).exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in information.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        processor = f"{names[0]}, {len(names)} cores" if names else processor
    memory = Path("/proc/meminfo")
    found: dict[str, Any] = {
        "processor": processor,
        "memory": f"{int(memory.read_text().split()[1]) / 2**20:.0f} GiB" if memory.exists() else "not known",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    from importlib.metadata import version

    names = ("torch", "transformers", "transformer-lens", "sea-lens")
    return found | {"python": platform.python_version()} | {name: version(name) for name in names}
