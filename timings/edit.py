"""What an edit adds to a forward pass, as ratios within one run.

    python timings/edit.py [--ranks 8 64] [--site mlp_out] [--combine norm] [--strength 1] [--dtype float32]

On a random Llama with every layer edited, three forward passes take turns: the plain one, one with a bare hook in every
layer (two thin projections in float32 and a rescale, which every edit needs), and the edited one. The bare one runs
twice, which says what the measurement is worth. The hooks are put in and taken out between the timed passes. A ratio is
that of the processor times of two passes in one round; its median and quartiles over the rounds are printed. First the
bare hooks and the edit must give the same logits, so that equal work is compared.

At site `z`, where each head has its own subspaces, the ranks are 8 and 32 by default: 64 would be all of a head.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from measuring import Table, random_llama, take_turns
from transformers.utils.logging import disable_progress_bar

import sea_lens as sl

LAYERS, WIDTH, HEADS, WORDS = 6, 512, 8, 500
BATCH, LENGTH = 8, 64
POINTS = {
    "mlp_out": "blocks.{}.hook_mlp_out",
    "attn_out": "blocks.{}.hook_attn_out",
    "resid_post": "blocks.{}.hook_resid_post",
    "z": "blocks.{}.attn.hook_z",
}
# How far apart, relative to the norm of all logits, the two edited passes may be: in half precision each of them rounds
# its edited activations anew, and what the next layer makes of it.
TOLERANCES = {"float32": 1e-3, "bfloat16": 3e-2}


def random_model(backend: str, dtype: str) -> Any:
    """A Llama with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        random_llama(folder, [], LAYERS, WIDTH, HEADS, vocabulary=WORDS, context=LENGTH)
        return sl.load_model(folder, backend, device="cpu", dtype=dtype)


def random_edit(rank: int, site: str) -> sl.SpectralEdit:
    """An edit fitted on random activations."""
    generator = torch.Generator().manual_seed(2)
    shape = (200, LAYERS, HEADS, WIDTH // HEADS) if site == "z" else (200, LAYERS, WIDTH)
    neutral, positive, negative = (torch.randn(shape, generator=generator) for _ in range(3))
    return sl.fit_activations(neutral, positive, negative, rank=(rank, rank), site=site)


def bare_hook(
    edit: sl.SpectralEdit, layer: int, rank: int, combine: str, strength: float
) -> Callable[..., torch.Tensor]:
    """A hook that edits a layer as `edit` does, with nothing around the arithmetic.

    The factors are the leading eigenvectors of the two projections' matrices, with the heads as first axis at `z`.
    """
    positive, negative = edit.projections(layer)
    dropping = torch.eye(negative.shape[-1], dtype=negative.dtype) - negative
    keep, drop = (torch.linalg.eigh(matrix)[1][..., -rank:].float() for matrix in (positive, dropping))
    if combine == "reverse":
        keep, drop = drop, keep

    def project(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        if factor.ndim == 2:
            return (x @ factor) @ factor.T
        # (batch, position, head, d_head) with one factor for each head.
        coordinates = torch.einsum("bphd,hdk->bphk", x, factor)
        return torch.einsum("bphk,hdk->bphd", coordinates, factor)

    def hook_function(activation: torch.Tensor, hook: object) -> torch.Tensor:
        x = activation.float()
        if combine == "positive_only":
            y = project(x, keep)
        elif combine == "negative_only":
            y = x - project(x, drop)
        else:
            y = x + project(x, keep) - project(x, drop)
        scale = 0.5 if combine == "average" else x.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True)
        y = y * scale
        if strength != 1:
            y = x + strength * (y - x)
        return y.to(activation.dtype)

    return hook_function


@contextmanager
def hooked(points: Sequence[tuple[Any, Callable[..., torch.Tensor]]]) -> Iterator[None]:
    """Hooks on hook points, for the length of a context."""
    handles = []
    for point, function in points:
        point.add_hook(function, is_permanent=True)
        handles.append((point, point.fwd_hooks[-1]))
    try:
        yield
    finally:
        for point, handle in handles:
            handle.hook.remove()
            point.fwd_hooks.remove(handle)


@contextmanager
def installed(edit: sl.Edit, model: Any, combine: str, strength: float) -> Iterator[None]:
    """An edit in all layers of a model, for the length of a context."""
    handle = edit.install(model, strength=strength, combine=combine)
    try:
        yield
    finally:
        handle.remove()


def main() -> None:
    """Measure each rank and print its ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="auto", help="auto (hooked where there is one), hooked or bridge")
    parser.add_argument("--site", choices=sl.SITES, default="mlp_out")
    parser.add_argument("--combine", choices=sl.COMBINES, default="norm")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--dtype", choices=TOLERANCES, default="float32")
    parser.add_argument("--ranks", type=int, nargs="+", default=None)
    parser.add_argument("--rounds", type=int, default=30)
    Table.add_option(parser)
    arguments = parser.parse_args()
    table = Table(arguments.json)
    torch.set_num_threads(1)
    site, combine, strength = arguments.site, arguments.combine, arguments.strength
    ranks = arguments.ranks or ([8, 32] if site == "z" else [8, 64])
    width = WIDTH // HEADS if site == "z" else WIDTH
    if not all(0 < rank < width for rank in ranks) or arguments.rounds < 2:
        parser.error(f"expected ranks from 1 to {width - 1} and at least 2 rounds")

    disable_progress_bar()
    model = random_model(arguments.backend, arguments.dtype)
    points = dict(model.hook_dict)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, WORDS, (BATCH, LENGTH), generator=generator)
    print(f"sea_lens in {Path(sl.__file__).parent}")
    print(
        f"{type(model).__name__}, {LAYERS} layers, width {WIDTH}, {BATCH} x {LENGTH} tokens, {arguments.dtype}, "
        f"site {site}, combine {combine}, strength {strength:g}, {arguments.rounds} rounds"
    )

    def forward() -> torch.Tensor:
        return model(tokens, return_type="logits")

    for rank in ranks:
        edit = random_edit(rank, site)
        functions = [
            (points[POINTS[site].format(layer)], bare_hook(edit, layer, rank, combine, strength))
            for layer in range(LAYERS)
        ]
        ways = (
            nullcontext,
            lambda functions=functions: hooked(functions),
            lambda edit=edit: installed(edit, model, combine, strength),
        )
        with torch.no_grad():
            logits = []
            for way in ways:
                with way():
                    logits.append(forward().float())
            change, error = (((logits[i] - logits[2]).norm() / logits[2].norm()).item() for i in (0, 1))
            if not error <= TOLERANCES[arguments.dtype]:
                raise SystemExit(f"rank {rank}: bare hooks and edit differ by {error:.1e} of the logits")
            times = take_turns([forward] * 4, arguments.rounds, [*ways, ways[1]])
        unedited, bare, edited, bare_again = times
        print(f"rank {rank}: plain forward {1000 * statistics.median(unedited):.0f} ms")
        name = f"forward pass, rank {rank}, {site}, {type(model).__name__}"
        table.ratio(f"{name}: bare hook / plain", bare, unedited)
        table.ratio(f"{name}: edited / plain", edited, unedited)
        table.ratio(f"{name}: edited / bare hook", edited, bare, "at most 1.02")
        table.ratio(f"{name}: bare hook / itself, what the measurement is worth", bare_again, bare)
        print(f"    logits: bare and edited differ by {error:.1e} of their norm, plain and edited by {change:.1e}")


if __name__ == "__main__":
    main()
