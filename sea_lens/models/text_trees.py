"""What is run for the three texts of a demonstration: what they share once, in padded passes of similar rows.

The tokens that all sequences of a demonstration begin with are its *stem*; what follows in each is a *branch*, which is
read behind a cache of the stem. Nothing here knows of a model: passes are planned from the tokens alone, so that the
same texts are read in the same passes wherever and whenever they are read.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .tokens import common_length

NEUTRAL, POSITIVE, NEGATIVE = range(3)
# What a pass costs besides its tokens, as a share of the most tokens that a pass has (docs/method.md 1.3).
_COST_OF_A_PASS = 1 / 16


class Span(NamedTuple):
    """The tokens of a text whose activations are averaged."""

    start: int
    stop: int

    @staticmethod
    def of(tokens: Sequence[int], position: str, first_token: int, seed: int) -> "Span":
        """Where a text is read; `first_token` is 1 behind a BOS, which counts only where it is all there is."""
        length = len(tokens)
        start = min(first_token, length - 1)
        if position == "last":
            start = length - 1
        if position == "random":
            # Depends on the seed and the text alone (docs/method.md 1.3).
            start += zlib.crc32(f"{seed} {' '.join(map(str, tokens))}".encode()) % (length - start)
        return Span(start, length if position == "mean" else start + 1)


@dataclass(frozen=True, slots=True)
class Tree:
    """The three texts of a demonstration as sequences to run: a text that begins another is read in it.

    That is right in a causal model.

    Attributes:
        lengths: of the sequences in tokens: the positive text, the negative one, and the neutral one unless it begins
            one of them.
        host: the sequence that the neutral text is read in.
        stem: how many tokens all sequences begin with; each has at least one more.
        spans: where the neutral, the positive and the negative text are read.
    """

    lengths: tuple[int, ...]
    host: int
    stem: int
    spans: tuple[Span, ...]

    @staticmethod
    def of(texts: Sequence[list[int]], spans: tuple[Span, ...]) -> "Tree":
        """The tree of a neutral, a positive and a negative text."""
        neutral, positive, negative = texts
        host = next((i for i, whole in enumerate((positive, negative)) if whole[: len(neutral)] == neutral), 2)
        sequences = [positive, negative, neutral][: max(host + 1, 2)]
        lengths = tuple(map(len, sequences))
        return Tree(lengths, host, min(common_length(sequences), min(lengths) - 1), spans)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)

    @property
    def branches(self) -> int:
        """Tokens behind the stem, of all sequences."""
        return sum(self.lengths) - self.stem * len(self.lengths)

    @property
    def read_in(self) -> tuple[int, int, int]:
        """The sequence that each of the three texts is read in."""
        return self.host, 0, 1


class Read(NamedTuple):
    """Tokens of a row of a pass that count towards one text; `text` is 3 · place of the tree + which of its texts."""

    row: int
    start: int
    stop: int
    text: int


@dataclass(frozen=True)
class Rows:
    """The rows of one pass.

    Attributes:
        of: (place of the tree, its sequence) of each row; sequence 0 for a stem.
        start, stop: which tokens of these sequences, at most.
        reads: what is read in them.
    """

    of: tuple[tuple[int, int], ...]
    start: tuple[int, ...]
    stop: tuple[int, ...]
    reads: tuple[Read, ...]


@dataclass(frozen=True)
class Passes:
    """The passes over some trees.

    Attributes:
        stems: the pass over all stems, a row for each tree; None where sequences are run whole.
        branches: the passes behind it.
    """

    stems: Rows | None
    branches: tuple[Rows, ...]


def batches(trees: Sequence[Tree], tokens: int, most: int | None, *, equal_stems: bool) -> list[list[int]]:
    """Trees that are run together, those of the longest stems and texts first.

    Args:
        trees: all of them.
        tokens: how many a pass has at most, padding counted; a longer text is a pass by itself.
        most: how many trees are run together at most; None for as many as fit.
        equal_stems: whether stems that are run together must be equally long, so that none is padded.
    """
    order = sorted(range(len(trees)), key=lambda i: (-trees[i].stem, -trees[i].longest))
    found: list[list[int]] = []
    longest_stem = behind = 0
    for number in order:
        tree = trees[number]
        begun = found[-1] if found else []
        if (
            not begun
            or len(begun) == most
            or (len(begun) + 1) * longest_stem > tokens
            or behind + tree.branches > tokens
            or (equal_stems and tree.stem != longest_stem)
        ):
            found.append([])
            longest_stem, behind = tree.stem, 0
        found[-1].append(number)
        behind += tree.branches
    return found


def passes(trees: Sequence[Tree], tokens: int, *, share: bool) -> Passes:
    """The passes over trees that are run together: with their stems run once where that is allowed and costs less.

    Args:
        trees: those of one batch.
        tokens: how many a pass has at most, padding counted; with 0, every row is a pass by itself.
        share: whether branches may be read behind a cache.
    """
    whole, cost_whole = _branches(trees, tokens, [0] * len(trees))
    stems = [tree.stem for tree in trees]
    if not share or min(stems) == 0:
        return Passes(None, whole)
    behind, cost_behind = _branches(trees, tokens, stems)
    if len(trees) * max(stems) + tokens * _COST_OF_A_PASS + cost_behind >= cost_whole:
        return Passes(None, whole)
    rows = [(place, 0) for place in range(len(trees))]
    return Passes(_rows(trees, rows, [0] * len(trees), stems, stem=True), behind)


def _branches(trees: Sequence[Tree], tokens: int, starts: Sequence[int]) -> tuple[tuple[Rows, ...], float]:
    """Passes over what the sequences have from these tokens on, and what they cost, in tokens."""
    rows = [(place, sequence) for place, tree in enumerate(trees) for sequence in range(len(tree.lengths))]
    left = {row: trees[row[0]].lengths[row[1]] - starts[row[0]] for row in rows}
    rows.sort(key=lambda row: -left[row])
    found, cost = [], 0.0
    for group in grouped([left[row] for row in rows], tokens):
        chosen = rows[group]
        begin = [starts[place] for place, _ in chosen]
        end = [trees[place].lengths[sequence] for place, sequence in chosen]
        found.append(_rows(trees, chosen, begin, end, stem=False))
        cost += len(chosen) * left[chosen[0]] + tokens * _COST_OF_A_PASS
    return tuple(found), cost


def _rows(
    trees: Sequence[Tree], of: Sequence[tuple[int, int]], start: Sequence[int], stop: Sequence[int], *, stem: bool
) -> Rows:
    reads = []
    for row, (place, sequence) in enumerate(of):
        for text, span in enumerate(trees[place].spans):
            begin, end = max(span.start, start[row]), min(span.stop, stop[row])
            if begin < end and (stem or trees[place].read_in[text] == sequence):
                reads.append(Read(row, begin - start[row], end - start[row], 3 * place + text))
    return Rows(tuple(of), tuple(start), tuple(stop), tuple(reads))


def grouped(lengths: Sequence[int], tokens: int) -> list[slice]:
    """Neighbours that are padded together so that all passes cost least, padding and what each costs besides.

    Args:
        lengths: of the rows, longest first.
        tokens: how many a group has at most, padding counted; a longer row is a group by itself.
    """
    n = len(lengths)
    ends = [i for i in range(1, n) if lengths[i] != lengths[i - 1]] + [n]
    # From the last row on: what the rows from here on cost, and where the first group of them ends.
    best: list[tuple[float, int]] = [(0.0, n)] * (n + 1)
    for begin in reversed(range(n)):
        furthest = max(begin + 1, min(n, begin + tokens // lengths[begin]))
        candidates = {furthest, *(end for end in ends if begin < end <= furthest)}
        best[begin] = min(
            ((end - begin) * lengths[begin] + tokens * _COST_OF_A_PASS + best[end][0], end) for end in candidates
        )
    return list(_slices(best, n))


def _slices(best: Sequence[tuple[float, int]], n: int) -> Iterator[slice]:
    begin = 0
    while begin < n:
        yield slice(begin, best[begin][1])
        begin = best[begin][1]
