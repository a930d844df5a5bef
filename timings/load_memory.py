"""Peak memory of loading a model, over the size of its weights.

    python timings/load_memory.py [--model M] [--width 1024] [--layers 12] [--vocabulary 32000]
                                  [--stored bfloat16] [--dtype bfloat16] [--offload]

Each load is a process of its own, and so is the idle one that it is held against, which has imported the same and has
loaded the shipped model. The peak is the most that was resident at once (Linux), pages of a weights' file that are
mapped into memory included. Without --model, a random Llama is made and loaded. With --offload, a bridge is loaded
whole and with all its blocks on the disk, captures 16 demonstrations, and generates 8 tokens under an edit.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from typing import Any

import torch
from measuring import Table, random_llama, resident

import sea_lens as sl
from sea_lens.models.load import hooked_available
from sea_lens.testbed.bed import PATH as TESTBED

WANTED = {"hooked": "at most 2.2", "bridge": "at most 1.3"}


def peak_of(name: str | None, backend: str, dtype: str) -> tuple[int, int, float]:
    """Of a process that loads a model, or only the shipped one: peak bytes, bytes of the model's weights, seconds."""
    said = in_child(["--child", backend, "--dtype", dtype, *(["--model", name] if name else [])]).split()
    return int(said[-3]), int(said[-2]), float(said[-1])


def in_child(given: list[str]) -> str:
    """What this script prints when it is run with other arguments."""
    return subprocess.run([sys.executable, __file__, *given], check=True, stdout=subprocess.PIPE, text=True).stdout


def child(name: str | None, backend: str, dtype: str) -> None:
    """Load, and do more where that is asked for; print the peak and the size of the weights in bytes, and seconds."""
    torch.set_num_threads(1)
    kind, _, job = backend.partition("-")
    shipped = sl.load_model(TESTBED, kind, "cpu", dtype)
    if job:
        sl.generate(shipped, "the", max_new_tokens=2)
    start, model = time.perf_counter(), torch.nn.Module()
    if name:
        place: Any = {"device_map": "disk"} if job == "disk" else {"device": "cpu"}
        model = sl.load_model(name, kind, dtype=dtype, **place)
    if name and job:
        prompts = [f"w{number} w{number + 1}" for number in range(16)]
        demonstrations = sl.Demonstrations(sl.Demonstration(one, f"{one} w500", f"{one} w501") for one in prompts)
        edit = sl.fit(sl.capture(model, demonstrations, progress=False), rank=4)
        with edit.applied(model):
            sl.generate(model, prompts[0], max_new_tokens=8)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    print(round(resident("VmHWM") * 2**30), size, time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="Hugging Face name or folder; a random Llama by default")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--stored", default="bfloat16", help="dtype of the random Llama's file")
    parser.add_argument("--dtype", default="bfloat16", help="dtype that it is loaded in")
    parser.add_argument("--offload", action="store_true", help="whole, and with its blocks on the disk")
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
        loads = ("hooked", "bridge") if hooked_available() else ("bridge",)
        for backend in ("bridge-whole", "bridge-disk") if arguments.offload else loads:
            idle, *_ = peak_of(None, backend, arguments.dtype)
            peak, size, seconds = peak_of(name, backend, arguments.dtype)
            sizes = f"weights {size / 1e6:.0f} MB, idle process {idle / 1e6:.0f}, peak {peak / 1e6:.0f}"
            what = f"peak of load_model above an idle process / weights, {arguments.dtype}, {backend}"
            table.number(what, (peak - idle) / size, WANTED.get(backend, ""), f"{sizes}; {seconds:.1f} s")


if __name__ == "__main__":
    main()
