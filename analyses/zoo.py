"""Tiny random models of many families and their odd variants: what the check of the model says of each, and the truth.

    python analyses/zoo.py rows.json                                   one run for each TransformerLens
    python analyses/zoo.py --table docs/models.md rows.json more.json  all runs in one table

Every model is made in memory from a configuration of transformers (hidden 32, 2 layers, weights of standard deviation
0.3), saved to a folder that is deleted afterwards, and loaded on every backend that the installed TransformerLens has.
The table has the deviation that `sea_lens.check_model` measured, or why `sea_lens.load_model` refused; and beside it
what was measured without the check, by reading other texts with the plain Hugging Face model: whole, with a cache in
three steps behind padding, and as greedy continuations.
"""

import argparse
import json
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from zoo_models import CASES, VOCABULARY, Case

import sea_lens as sl
from sea_lens.models.cache import Past
from sea_lens.models.lens import Lens
from sea_lens.models.load import hooked_available

BACKENDS = ("hooked", "bridge") if hooked_available() else ("bridge",)
# Lengths of the steps in which a text is read with a cache, and of greedy continuations.
_STEPS, _MORE = (9, 3, 1), 6
_PROMPTS = ("Once upon a time", "A dog")
LIMIT = 1e-4


@dataclass(frozen=True)
class Truth:
    """What the plain Hugging Face model says, reading whole.

    Attributes:
        tokens, logits: two texts.
        texts: its greedy continuations of two prompts.
    """

    tokens: torch.Tensor
    logits: torch.Tensor
    texts: list[str]

    @staticmethod
    def of(folder: Path) -> "Truth":
        """Read with the model of a folder."""
        from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        reader = PreTrainedTokenizerFast.from_pretrained(folder)
        tokens = torch.randint(4, VOCABULARY, (2, 30), generator=torch.Generator().manual_seed(1))
        texts = []
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False).logits
            for prompt in _PROMPTS:
                known = [1, *reader(prompt, add_special_tokens=False).input_ids]
                start = len(reader.decode(known, skip_special_tokens=True))
                for _ in range(_MORE):
                    chosen = int(model(input_ids=torch.tensor([known]), use_cache=False).logits[0, -1].argmax())
                    if chosen == reader.eos_token_id:
                        break
                    known.append(chosen)
                texts.append(reader.decode(known, skip_special_tokens=True)[start:])
        return Truth(tokens, logits, texts)

    def off(self, found: torch.Tensor, expected: torch.Tensor) -> float:
        """Largest difference, relative to the largest logit."""
        return ((found.to(expected) - expected).abs().max() / self.logits.abs().max()).item()


@dataclass(frozen=True)
class Outcome:
    """What became of a case on a backend.

    Attributes:
        name, family, backend: of which.
        refusal: why it was not loaded, None where it was.
        check: the deviation that the check measured.
        unlike: names of the facts that are not as they should be.
        whole, cached: how far logits are from the truth.
        generated: whether continuations are those of the truth.
    """

    name: str
    family: str
    backend: str
    refusal: str | None = None
    check: float | None = None
    unlike: tuple[str, ...] = ()
    whole: float | None = None
    cached: float | None = None
    generated: bool | None = None

    @property
    def exact(self) -> bool:
        """Whether what is read and generated is what the Hugging Face model says."""
        off = (self.whole, self.cached)
        return bool(self.generated) and all(value is not None and value <= LIMIT for value in off)


def measure(case: Case, folder: Path, backend: str, truth: Truth) -> Outcome:
    """Load the model of a folder, check it, and compare it with the truth."""
    try:
        with warnings.catch_warnings():
            # That a model's own cache is not exact stands in the table as well.
            warnings.simplefilter("ignore")
            model = sl.load_model(folder, backend)
    except sl.UnsupportedModelError as error:
        return Outcome(case.name, case.family, backend, refusal=str(error))
    report, lens = sl.check_model(model), Lens.of(model)
    tokens, expected = truth.tokens, truth.logits
    with torch.no_grad():
        whole = truth.off(lens.forward(tokens, torch.ones_like(tokens)), expected)
    return Outcome(
        case.name,
        case.family,
        backend,
        check=report.deviation,
        unlike=tuple(fact.name for fact in report.facts if not fact.ok),
        whole=whole,
        cached=_cached(lens, truth),
        generated=sl.generate(model, list(_PROMPTS), max_new_tokens=_MORE) == truth.texts,
    )


def _cached(lens: Lens, truth: Truth) -> float:
    """Two rows read in three steps, the second two tokens shorter."""
    first, rest = _STEPS[0], _STEPS[1:]
    short = first - 2
    begin = torch.stack([truth.tokens[0, :first], torch.cat([torch.zeros(2).long(), truth.tokens[1, :short]])])
    mask = torch.ones_like(begin)
    mask[1, :2] = 0
    logits, past = Past(lens, 2).read(begin, mask)
    worst = max(truth.off(logits[0], truth.logits[0, :first]), truth.off(logits[1, 2:], truth.logits[1, :short]))
    for step in rest:
        places = (slice(first, first + step), slice(short, short + step))
        logits, past = past.read(torch.stack([truth.tokens[row, place] for row, place in enumerate(places)]))
        worst = max(worst, *(truth.off(logits[row], truth.logits[row, place]) for row, place in enumerate(places)))
        first, short = first + step, short + step
    return worst


def outcomes(cases: Sequence[Case]) -> list[Outcome]:
    """Every case on every backend."""
    found = []
    for case in cases:
        with tempfile.TemporaryDirectory() as name:
            folder = case.write(Path(name) / "model")
            truth = Truth.of(folder)
            found += [measure(case, folder, backend, truth) for backend in BACKENDS]
    return found


def table(runs: dict[str, list[Outcome]]) -> str:
    """All runs as Markdown: a row for each case, a column for each backend of each version."""
    columns = [(label, backend) for label, run in runs.items() for backend in sorted({one.backend for one in run})]
    by_place = {(label, one.backend, one.name): one for label, run in runs.items() for one in run}
    every = [one for run in runs.values() for one in run]
    names = list(dict.fromkeys(one.name for one in every))
    loaded = [one for one in every if one.refusal is None]
    whole, cached = (max(getattr(one, kind) or 0.0 for one in loaded) for kind in ("whole", "cached"))
    about = [
        "`analyses/zoo.py` writes this table: tiny random models, each compared with the plain Hugging Face model. A",
        "number is the largest deviation of a logit that the check of the model (`sl.check_model`) measured, relative",
        "to the largest logit. Where there is none, `sl.load_model` refused, and why stands below. What was loaded was",
        "read once more without the check, on other texts: whole, with a cache behind padding, and in greedy",
        "continuations.",
        "",
        f"{len(names)} configurations of {len({one.family for one in every})} families, {len(every)} loads:",
        f"{len(loaded)} loaded, {sum(one.exact for one in loaded)} of them exact to {LIMIT:g} in all three ways, and",
        f"{len(every) - len(loaded)} refused. Without the check, the largest deviation is {whole:.0e} whole and",
        f"{cached:.0e} with a cache.",
    ]
    lines = [
        "# Which models are what they should be",
        "",
        *about,
        "",
        "| model | " + " | ".join(f"{backend}, {label}" for label, backend in columns) + " |",
        "| --- " * (len(columns) + 1) + "|",
    ]
    reasons: dict[str, int] = {}
    for name in names:
        cells = []
        for label, backend in columns:
            one = by_place.get((label, backend, name))
            if one is None:
                cells.append("")
            elif one.refusal is None:
                cells.append(f"{one.check or 0.0:.1g}" + ("" if one.exact else " **wrong**"))
            elif off := re.search(r"logits against the original, relative: (\S+)", one.refusal):
                cells.append(f"refused: off by {float(off[1]):.1g}")
            else:
                cells.append(f"refused ({reasons.setdefault(_reason(one.refusal), len(reasons) + 1)})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "Why models were refused:", "", *(f"{number}. {reason}" for reason, number in reasons.items())]
    told = sorted({f"{one.name} ({one.backend}): {', '.join(one.unlike)}" for one in loaded if one.unlike})
    if told:
        lines += [
            "",
            "What the check says of loaded models that is not as expected:",
            "",
            *(f"- {one}" for one in told),
        ]
    return "\n".join(lines) + "\n"


def _reason(refusal: str) -> str:
    """A refusal without the model's name and what it advises."""
    said = re.sub(r"^model '[^']*'( \(\w+\))?:? (could not be loaded: |cannot be run: )?", "", refusal).split(";")[0]
    said = re.sub(r"\. Available architectures.*", "", said)
    return re.sub(r"^\w+ is not currently supported", "The architecture is not currently supported", said).strip()


def main() -> None:
    """Measure all cases and write a file, or make a table of such files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", type=Path, nargs="+", help="the file to write, or with --table the files to read")
    parser.add_argument("--table", type=Path, help="the Markdown file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table is None:
        (path,) = arguments.rows
        label = f"TransformerLens {version('transformer-lens')}, transformers {version('transformers')}"
        found = outcomes(CASES)
        path.write_text(json.dumps({"versions": label, "outcomes": [asdict(one) for one in found]}), encoding="utf-8")
        wrong = [one for one in found if one.refusal is None and not one.exact]
        print(f"{len(found)} loads, {sum(one.refusal is not None for one in found)} refused, {len(wrong)} wrong")
        for one in wrong:
            print(one)
        return
    runs = {}
    for path in arguments.rows:
        content = json.loads(path.read_text(encoding="utf-8"))
        runs[content["versions"]] = [Outcome(**{**one, "unlike": tuple(one["unlike"])}) for one in content["outcomes"]]
    arguments.table.write_text(table(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
