"""Interrupts of an edit that goes into a model, runs and comes out: what is left behind, which must be nothing.

    python timings/interrupts.py --model FOLDER [--interrupts 10000] [--backends hooked bridge] [--kinds LoRA]
        [--every 1]

Edits of every kind (spectral, LoRA, DoLa, in-context) go into a tiny model for the length of a context, and it runs.
First an interrupt is raised at each line in turn that then runs in sea_lens, in torch's and TransformerLens's modules
and hooks, and in contextlib (`--every n` takes each n-th, 0 none). Then a timer sends an interrupt at random moments,
wherever Python then is. After each one the model must hold no hook, no stand-in, no changed weight and no prefix, and
after each hundredth give its logits of before, bit by bit.
"""

import argparse
import contextlib
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformer_lens.hook_points

import sea_lens as sl
from sea_lens.methods.adapters import Adapter, LoRA
from sea_lens.methods.few_shot import InContext
from sea_lens.models.lens import Lens
from sea_lens.models.load import hooked_available

BATCH, LENGTH = 1, 4
KINDS = ("spectral", "LoRA", "DoLa", "in-context")


def edits_of(model: Any) -> dict[str, sl.Edit]:
    """One edit of every kind, with random numbers in it."""
    lens = Lens.of(model)
    generator = torch.Generator().manual_seed(0)
    neutral, positive, negative = torch.randn(3, 40, lens.n_layers, lens.d_model, generator=generator)
    width = int(model.cfg.d_mlp)
    adapters = {
        layer: Adapter(torch.randn(2, width, generator=generator), torch.randn(lens.d_model, 2, generator=generator))
        for layer in range(lens.n_layers)
    }
    return {
        "spectral": sl.fit_activations(neutral, positive, negative, rank=(3, 2)),
        "LoRA": LoRA(adapters, (), {}),
        "DoLa": sl.dola(model, relative_top=0.0),
        "in-context": InContext("w1 w2 ", lens.n_layers),
    }


def left_behind(model: Any, weights: dict[str, torch.Tensor], points: dict[str, Any] | None = None) -> list[str]:
    """What of sea_lens's is in a model that should have these weights; its hook points need not be listed anew."""
    lens, found = Lens.of(model), []
    modules = [module for module in (model, getattr(model, "original_model", None)) if module is not None]
    for name, point in (points or dict(lens.points.items())).items():
        found += [f"hook at {name}"] * bool(point.fwd_hooks or point._forward_hooks)
    for module in modules:
        found += [name for name in ("forward", "__deepcopy__", "__reduce_ex__") if name in vars(module)]
        found += ["hook of torch's"] * (len(module._forward_hooks) + len(module._forward_pre_hooks))
    found += ["prefix"] * bool(lens.prefix_length) + ["pass"] * (lens.current_pass is not None)
    found += ["entry"] * len(sl.installed(model)) + ["changed weights"] * bool(lens.changed_weights)
    changed = (n for n, parameter in model.named_parameters() if parameter.data_ptr() != weights[n].data_ptr())
    return [*found, *(f"weight {name}" for name in changed)]


def interrupted(action: Callable[[], object], after: float) -> bool:
    """Whether SIGINT, sent after so many seconds, came while an action ran."""
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, after)
            action()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    return False


def _traced() -> tuple[str, ...]:
    modules = (sl, contextlib, torch.nn.modules.module, torch.utils.hooks, transformer_lens.hook_points)
    files = [str(module.__file__) for module in modules]
    return (str(Path(files[0]).parent), *files[1:])


# Files in which lines are interrupted, or folders of them.
TRACED = _traced()


def interrupted_at(action: Callable[[], object], line: int) -> int:
    """How many lines were not reached of those up to this number; the last of them is interrupted."""
    left = line + 1

    def local(frame: Any, event: str, _: object) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return local

    def enter(frame: Any, event: str, _: object) -> Any:
        return local if frame.f_code.co_filename.startswith(TRACED) else None

    tracing = sys.gettrace()
    try:
        try:
            sys.settrace(enter)
            action()
        finally:
            sys.settrace(tracing)
    except KeyboardInterrupt:
        pass
    return left


def main() -> None:
    """Interrupt, and print what was left behind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--interrupts", type=int, default=10000)
    parser.add_argument("--model", required=True, help="folder of a Hugging Face model")
    parser.add_argument("--backends", nargs="+", default=["hooked", "bridge"] if hooked_available() else ["bridge"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--every", type=int, default=1, help="interrupt each n-th line; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    order = random.Random(arguments.seed)
    bad = total = 0
    for backend in arguments.backends:
        model = sl.load_model(arguments.model, backend, device="cpu")
        tokens = torch.randint(4, 60, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
        points = dict(Lens.of(model).points.items())
        weights = {name: parameter.data for name, parameter in model.named_parameters()}
        with torch.no_grad():
            right = model(tokens)
        kinds = {kind: edit for kind, edit in edits_of(model).items() if kind in arguments.kinds}
        for kind, edit in kinds.items():

            def action(model: Any = model, edit: sl.Edit = edit, tokens: torch.Tensor = tokens) -> None:
                with torch.no_grad(), edit.applied(model):
                    model(tokens)

            action()
            begin = time.perf_counter()
            for _ in range(5):
                action()
            length = (time.perf_counter() - begin) / 5
            line = places = spoiled = 0
            while arguments.every and interrupted_at(action, line) == 0:
                places, line = places + 1, line + arguments.every
                torch.set_grad_enabled(True)
                if found := left_behind(model, weights, points):
                    spoiled += 1
                    print(f"{backend}, {kind}, line {line}: {found[:6]}")
                    sl.remove_all(model)
                if places % 100 == 0:
                    with torch.no_grad():
                        assert torch.equal(model(tokens), right), "other logits"
            if places:
                print(f"{backend}, {kind}: {places} lines interrupted, {spoiled} left something", flush=True)
            wanted = arguments.interrupts // (len(kinds) * len(arguments.backends))
            came = wrong = 0
            while came < wanted:
                if not interrupted(action, order.uniform(1e-5, 1.05 * length)):
                    found = left_behind(model, weights, points)
                    assert not found, found
                    continue
                came += 1
                torch.set_grad_enabled(True)
                if found := left_behind(model, weights, points):
                    wrong += 1
                    print(f"{backend}, {kind}: {found[:6]}")
                    sl.remove_all(model)
                if came % 100 == 0:
                    with torch.no_grad():
                        assert torch.equal(model(tokens), right), "other logits"
            took = f"passes of {1000 * length:.1f} ms"
            print(f"{backend}, {kind}: {came} interrupts in {took}, {wrong} left something", flush=True)
            bad, total = bad + wrong, total + came
    print(f"{total} interrupts, {bad} left something behind")


if __name__ == "__main__":
    main()
