"""How a model may read with a cache: measured once, against reading whole, with the model's own weights.

The probe reads two short rows of seeded tokens, one of them padded on the left, once whole (the check of a model has
just done so) and once in steps: some tokens, some more, and two more of rows that were chosen from what had been read.
What is looked for is no rounding: a cache that forgets changes logits by as much as there is. Hooks in the model, an
edit's among them, are set aside for its length, so that it measures the model.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import SeaLensWarning
from .bare import without_hooks
from .cached_pass import cached_pass, holds, keep_cache_under_old_name, keys, selected, whole_pass
from .lens import Lens
from .reference import COLUMNS, Probe, Read

# How the cache is handed on: as the backend does it by itself, under its old name as well, or not at all.
Way = Literal["own", "renamed", "whole"]

# Of the largest logit: what differs by less is rounding. Matrix products of other shapes round otherwise.
_LEAST_LIMIT = 1e-4
_ROUNDINGS = 8.0
# How many columns the shorter row is padded by.
_PADDING = 2


@dataclass(frozen=True)
class CachedReading:
    """What the probe found.

    Attributes:
        way: how sea_lens reads: with the backend's own cache ("own"), with the cache handed to a bridge's attention
            under the name that it looks for ("renamed"), or whole, without a cache ("whole").
        padded: whether `way` is exact for rows that are padded on the left, too; they are read whole otherwise.
        own: largest deviation of the model's own cached reading from reading whole, as a share of the largest logit;
            infinite where it fails, None where it was not measured. What a model's own `generate` with a cache is off
            by.
        deviation: the same for `way`; None where everything is read whole.
        limit: below which a deviation counts as rounding.
        apart: whether a row is read otherwise beside a longer one, so that each must be run by itself.
    """

    way: Way
    padded: bool
    own: float | None
    deviation: float | None
    limit: float
    apart: bool = False

    @property
    def own_is_exact(self) -> bool:
        """Whether the model's own `generate` may use its cache."""
        return self.own is not None and self.own <= self.limit


def cached_reading(lens: Lens, length: int = 0, read: Read | None = None) -> CachedReading:
    """How this model may read with a cache; measured when first asked for, then remembered.

    Args:
        lens: the model.
        length: positions that the longest row will have. Beyond the length of a sliding window the probe is made once
            more; where positions are turned otherwise in long texts, those are read whole.
        read: what the model has just read whole, which is then not read again.
    """
    key = _key(lens, length)
    if key not in lens.cached_readings:
        lens.cached_readings[key] = _measured(lens, key[0], None if key[0] else read)
        if not key[0]:
            tell_of_own_cache(lens)
    return lens.cached_readings[key]


def take_as_exact(lens: Lens) -> None:
    """Let a model read with its own cache, unmeasured: for one that has no numbers to measure (`planning`)."""
    for length in (0, lens.n_ctx):
        lens.cached_readings[_key(lens, length)] = CachedReading("own", True, None, 0.0, _limit(lens))


def cache_deviation(lens: Lens) -> float | None:
    """Largest deviation of sea_lens's cached reading from reading whole, as a share of the largest logit.

    Returns:
        None where sea_lens reads this model whole, since its cache is not exact.
    """
    return cached_reading(lens).deviation


def distrust(lens: Lens) -> None:
    """Read this model whole from now on: its cache did not hold what it had read."""
    for key, known in lens.cached_readings.items():
        lens.cached_readings[key] = replace(known, way="whole", padded=False, deviation=None)


def mend_own_cache(lens: Lens, read: Read | None = None) -> None:
    """Give a bridge that needs it the cache by its old name for good, so that its own `generate` is exact as well.

    Args:
        lens: of the bridge.
        read: what it has just read whole, which is then not read again.
    """
    found = _measured(lens, 0, read)
    if found.way == "renamed" and found.deviation is not None:
        keep_cache_under_old_name(lens.model)
        found = replace(found, way="own", own=found.deviation)
    lens.cached_readings[_key(lens, 0)] = found


def tell_of_own_cache(lens: Lens) -> None:
    """Warn of a model whose own `generate` is not exact, where that was measured."""
    found = lens.cached_readings.get(_key(lens, 0))
    if found is None:
        return
    if found.own is not None and not found.own_is_exact:
        warnings.warn(
            f"model {lens.name!r} does not read with its own cache as it reads whole texts (logits off by "
            f"{found.own:.1g} of the largest): what sea_lens reads and generates is exact all the same, but the "
            f"model's own `generate` is only with use_past_kv_cache=False",
            SeaLensWarning,
            stacklevel=2,
        )


def _key(lens: Lens, length: int) -> tuple[Any, ...]:
    passed = [limit for limit in _lengths_that_matter(lens) if limit < length]
    return max(passed, default=0), lens.dtype, bool(lens.model.training)


def _measured(lens: Lens, beyond: int, read: Read | None) -> CachedReading:
    limit, own = _limit(lens), float("inf")
    if beyond and beyond in _turning_lengths(lens):
        return CachedReading("whole", False, own, None, limit, apart=True)
    if lens.n_ctx < COLUMNS:
        # Texts so short are read whole in no time.
        return CachedReading("whole", False, None, None, limit)
    ways: tuple[Way, ...] = ("own",) if lens.backend == "hooked" else ("own", "renamed")
    with torch.no_grad(), without_hooks(lens):
        for padding in (0,) if beyond else (_PADDING, 0):
            text = _Text.of(lens, beyond, padding, read)
            reference = whole_pass(lens, text.tokens, text.mask).whole() if text.logits is None else text.logits
            if not bool(reference[text.mask.bool()].max() < float("inf")):
                # Where there are no numbers there is nothing to compare.
                return CachedReading("whole", False, None, None, limit)
            for way in ways:
                deviation = _deviation(lens, text, reference, limit, renamed=way == "renamed")
                own = min(own, deviation) if way == "own" else own
                if deviation <= limit:
                    return CachedReading(way, padding > 0 or beyond > 0, own, deviation, limit)
    return CachedReading("whole", False, own, None, limit)


@dataclass(frozen=True)
class _Text:
    """What the probe reads.

    Attributes:
        tokens, mask: two rows, or one long one.
        first: columns that are read in the first step; three are in the second, and two in the third.
        logits: of the rows read whole, where they are known.
    """

    tokens: Int[Tensor, "rows columns"]
    mask: Int[Tensor, "rows columns"]
    first: int
    logits: Float[Tensor, "rows columns d_vocab"] | None = None

    @classmethod
    def of(cls, lens: Lens, beyond: int, padding: int, read: Read | None) -> "_Text":
        if beyond:
            columns = max(min(beyond + 5, lens.n_ctx), 6)
            generator = torch.Generator().manual_seed(0)
            tokens = torch.randint(lens.d_vocab, (1, columns), generator=generator).to(lens.device)
            return cls(tokens, torch.ones_like(tokens), columns - 5)
        probe = Probe.of(lens.d_vocab, lens.n_ctx) if read is None else read.probe
        tokens = _behind_padding(probe.tokens.to(lens.device), padding)
        mask = torch.ones_like(tokens)
        mask[1, :padding] = mask[1, -1] = 0
        logits = None if read is None else _behind_padding(read.logits.to(lens.device), padding)
        return cls(tokens, mask, COLUMNS - 5, logits)


def _behind_padding(rows: Tensor, padding: int) -> Tensor:
    """The first columns of two rows, the second of which begins so many columns later, and ends one before the last."""
    moved = rows[:, :COLUMNS].clone()
    moved[1, padding:-1] = rows[1, : COLUMNS - 1 - padding]
    return moved


def _deviation(
    lens: Lens, text: _Text, reference: Float[Tensor, "rows columns d_vocab"], limit: float, *, renamed: bool
) -> float:
    """Largest deviation of the steps' logits, as a share of the largest logit; infinite where a step fails.

    Steps end where one has deviated by more than the limit.
    """
    tokens, mask, at = text.tokens, text.mask, text.first
    order = torch.tensor([1, 0, 1] if len(tokens) == 2 else [0, 0], device=tokens.device)
    largest = max(float(reference[mask.bool()].abs().max()), torch.finfo(torch.float32).tiny)
    worst, remembered = 0.0, True

    def step(begin: int, end: int, rows: Tensor, past: Any) -> Any:
        nonlocal worst, remembered
        known = mask[rows, :end]
        found, new = cached_pass(lens, tokens[rows, begin:end], known, past, renamed=renamed)
        off = (found.whole() - reference[rows, begin:end]).abs()[known[:, begin:].bool()].max()
        # A NaN is no small deviation.
        worst = max(worst, float(off) / largest if bool(off.isfinite()) else float("inf"))
        remembered = remembered and holds(new, end + lens.prefix_length)
        return new

    every = torch.arange(len(tokens), device=tokens.device)
    try:
        state = step(0, at, every, None)
        before = [one.clone() for one in keys(state)]
        longer = step(at, at + 3, every, state)
        # Reading on from a cache must not change it.
        unchanged = all(torch.equal(one, kept) for one, kept in zip(keys(state), before, strict=True))
        if not remembered or not unchanged or worst > limit:
            return worst if worst > limit else float("inf")
        step(at + 3, at + 5, order, selected(longer, order))
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception:
        # Whatever a backend raises here, it cannot read on from a cache.
        return float("inf")
    return worst if remembered else float("inf")


def _limit(lens: Lens) -> float:
    """The share of the largest logit below which a deviation is rounding."""
    precision = torch.finfo(lens.dtype).eps
    if lens.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        precision = max(precision, 2.0**-10)
    return max(_LEAST_LIMIT, _ROUNDINGS * precision)


def _configurations(lens: Lens) -> list[Any]:
    """The model's own configuration and, in a bridge, Hugging Face's."""
    inside = getattr(getattr(lens.model, "original_model", None), "config", None)
    return [lens.model.cfg] if inside is None else [lens.model.cfg, inside.get_text_config()]


def _turning_lengths(lens: Lens) -> set[int]:
    """Lengths beyond which positions are turned otherwise, those that a cache holds already as well."""
    found: set[int] = set()
    for config in _configurations(lens):
        given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        for one in (given, *(value for value in given.values() if isinstance(value, dict))):
            kind = one.get("rope_type", one.get("type"))
            if kind in ("longrope", "dynamic"):
                own = one.get("original_max_position_embeddings") if kind == "longrope" else None
                found.add(own or getattr(config, "original_max_position_embeddings", None) or int(lens.model.cfg.n_ctx))
    return found


def _lengths_that_matter(lens: Lens) -> set[int]:
    """Lengths beyond which a model reads otherwise: sliding windows, chunks, and turned positions."""
    windows = {
        int(value)
        for config in _configurations(lens)
        for name in ("sliding_window", "attention_chunk_size", "window_size")
        if isinstance(value := getattr(config, name, None), int) and value > 0
    }
    return windows | _turning_lengths(lens)
