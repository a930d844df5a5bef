"""Sentences of `sea-lens circuit` on how few parts have most of an effect; none of an effect that may be nothing."""

from collections.abc import Sequence

from .._support.arguments import counted
from ..contributions.recovery_results import Recovery
from ..contributions.truncation_results import Truncation
from .circuit_words import NAMED, signed


def few_planes(found: Truncation, share: float) -> list[str]:
    """How few planes have this share of the effect, or why nobody can tell."""
    effect = f"The effect is {found.effect_interval} nats"
    if found.untold:
        return [f"{effect}: {found.untold}."]
    fewest = found.fewest(share)
    if fewest is None:
        return [f"{effect}. No number of planes that was tried has {share:.0%} of it."]
    return [f"{effect}. {counted(fewest, 'plane')} of each layer {'has' if fewest == 1 else 'have'} {share:.0%} of it."]


def few_nodes(found: Recovery, share: float) -> list[str]:
    """How few heads and MLPs keep this share of the effect, beside other orders, or why nobody can tell."""
    which = "that nodes were not chosen on" if found.held_out else "that nodes were chosen on too"
    on = f"on {counted(len(found.item_effects), 'contrast')} {which} the effect is {found.effect_interval} nats"
    lines = [f"{'With the edit itself' if found.direct else 'Alone'}: {on}."]
    names = [".".join(map(str, node)) for node in found.nodes]
    if found.untold:
        return [*lines, f"So {found.untold}.", f"The first are {', '.join(names[:NAMED])}."]
    fewest, others = found.fewest(share), found.others_fewest(share)
    n = len(found.nodes)
    if fewest is None:
        lines += [f"No number of heads and MLPs keeps {share:.0%} of it.", all_of_them(found)]
    else:
        lines.append(f"{fewest} of {n} heads and MLPs {'keeps' if fewest == 1 else 'keep'} {share:.0%} of it.")
    for name, told in (("random", "random orders"), ("control", "orders that control edits give")):
        lines += [needed_by_others(others[name], told, fewest)] if others[name] else []
    return [*lines, f"The first are {', '.join(names[: max(fewest or 0, NAMED)])}."]


def all_of_them(found: Recovery) -> str:
    """What all nodes together keep, where that is less than was asked for, and where the rest goes."""
    kept, n = f"{signed(found.values[-1].item())} nats, {found.ceiling:.0%} of it", len(found.nodes)
    if found.sizes[-1] < n:
        return f"{found.sizes[-1]} of {n}, the most that were taken, keep {kept}."
    if found.ceiling < 0:
        return f"All {n} together act against it: {kept}."
    return f"All {n} together keep {kept}; the rest the edit itself does, by what it adds to the stream."


def needed_by_others(needed: Sequence[int | None], told: str, ours: int | None) -> str:
    """How many nodes other orders need; `told` names these orders, in the plural."""
    n, some = len(needed), sorted(k for k in needed if k is not None)
    if not some:
        return f"1 {told.replace('orders', 'order', 1)} never reaches it." if n == 1 else f"{n} {told} never reach it."
    reached = f"{some[0]}" if some[0] == some[-1] else f"{some[0]} to {some[-1]}"
    missing = f", {n - len(some)} never reach it" if len(some) < n else ""
    as_few = "" if ours is None else f"; {sum(k <= ours for k in some)} of {n} do with as few"
    return f"Of {n} {told} those that do need {reached}{missing}{as_few}."
