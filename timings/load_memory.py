"""Peak memory of loading a model, over the size of its weights.

    python timings/load_memory.py [--model M] [--width 1024] [--layers 12] [--vocabulary 32000]
                                  [--stored bfloat16] [--dtype bfloat16]

Each load is a process of its own, and so is the idle one that it is held against, which has imported the same and has
loaded the shipped model. The peak is the most that was resident at once (Linux), pages of a weights' file that are
mapped into memory included. Without --model, a random Llama is made and loaded.
"""

import argparse
import subprocess
import sys
import tempfile
import warnings

import torch
from measuring import Table, random_llama, resident

import sea_lens as sl
from sea_lens.models.load import hooked_available
from sea_lens.testbed.bed import PATH as TESTBED

WANTED = {"hooked": "at most 2.2", "bridge": "at most 1.3"}


def peak_of(name: str | None, backend: str, dtype: str) -> tuple[int, int]:
    """Peak bytes of a process that loads a model, or only the shipped one, and bytes of the model's weights."""
    said = in_child(["--child", backend, "--dtype", dtype, *(["--model", name] if name else [])]).split()
    return int(said[-2]), int(said[-1])


def in_child(given: list[str]) -> str:
    """What this script prints when it is run with other arguments."""
    return subprocess.run([sys.executable, __file__, *given], check=True, stdout=subprocess.PIPE, text=True).stdout


def child(name: str | None, backend: str, dtype: str) -> None:
    """Load, and print the peak and the size of the weights in bytes."""
    torch.set_num_threads(1)
    sl.load_model(TESTBED, backend, "cpu", dtype)
    model = sl.load_model(name, backend, "cpu", dtype) if name else torch.nn.Module()
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    print(round(resident("VmHWM") * 2**30), size)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="Hugging Face name or folder; a random Llama by default")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--stored", default="bfloat16", help="dtype of the random Llama's file")
    parser.add_argument("--dtype", default="bfloat16", help="dtype that it is loaded in")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    Table.add_option(parser)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.child == "make":
        width, heads = arguments.width, max(arguments.width // 64, 1)
        sizes = {"inner_width": width * 11 // 4, "vocabulary": arguments.vocabulary}
        random_llama(arguments.model, [], arguments.layers, width, heads, dtype=arguments.stored, **sizes)
        return
    if arguments.child:
        child(arguments.model, arguments.child, arguments.dtype)
        return
    table = Table(arguments.json)
    with tempfile.TemporaryDirectory() as folder:
        name = arguments.model or folder
        if not arguments.model:
            # Not here, since a process is charged with the peak of the one that started it.
            in_child([*sys.argv[1:], "--child", "make", "--model", folder])
        for backend in ("hooked", "bridge") if hooked_available() else ("bridge",):
            idle, _ = peak_of(None, backend, arguments.dtype)
            peak, size = peak_of(name, backend, arguments.dtype)
            note = f"weights {size / 1e6:.0f} MB, idle process {idle / 1e6:.0f}, peak {peak / 1e6:.0f}"
            what = f"peak of load_model above an idle process / weights, {arguments.dtype}, {backend}"
            table.number(what, (peak - idle) / size, WANTED[backend], note)


if __name__ == "__main__":
    main()
