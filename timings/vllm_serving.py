"""What an edit costs a vLLM server: tokens a second with the plug-in and without, as a ratio within one run.

    OMP_NUM_THREADS=1 python timings/vllm_serving.py [--data ../shared/data/halueval/qa_data.jsonl] [--compiled]

A random Llama of 8 layers and width 512 writes 32 tokens behind each of 16 prompts at a time, greedily, in two engines
of one process that take turns: one loaded without an edit, and then one with an edit of rank 16 in all layers, by the
plug-in. Needs the extra `vllm`, and one thread: times are those of the processor.
"""

import argparse
import importlib
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import DATA, Table, random_llama, take_turns
from vllm_engine import ENGINE

import sea_lens as sl
from sea_lens.serving.vllm_plugin import register


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA / "halueval" / "qa_data.jsonl", help="HaluEval's questions")
    parser.add_argument("--prompts", type=int, default=16, help="prompts at a time")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens of a continuation")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compiled", action="store_true", help="let vLLM compile the model")
    Table.add_option(parser)
    arguments = parser.parse_args()
    os.environ |= ENGINE
    torch.set_num_threads(1)
    demonstrations = sl.Demonstrations(sl.Demonstrations.from_halueval(arguments.data)[:48])
    texts = [text for one in demonstrations for text in (one.neutral, one.positive, one.negative)]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as beside:
        random_llama(folder, texts, arguments.layers, arguments.width, heads=8)
        model = sl.load_model(folder, "bridge", device="cpu")
        # Beside the model: vLLM reads every file of weights in its folder.
        path = f"{beside}/edit.safetensors"
        edit = sl.fit(sl.capture(model, demonstrations, progress=False), rank=16)
        edit.save(path)
        vllm = importlib.import_module("vllm")
        options: dict[str, Any] = {"max_model_len": 1024, "dtype": "float32", "enforce_eager": not arguments.compiled}
        plain = vllm.LLM(folder, **options)
        register({"SEA_LENS_EDIT": path})
        edited = vllm.LLM(folder, **options)
        prompts = [{"prompt_token_ids": model.to_tokens(one.neutral)[0].tolist()} for one in demonstrations]
        sampling = vllm.SamplingParams(temperature=0, max_tokens=arguments.new_tokens, ignore_eos=True)

        def written(llm: Any) -> list[Any]:
            return llm.generate(prompts[: arguments.prompts], sampling, use_tqdm=False)

        ways = [lambda: written(plain), lambda: written(edited)]
        first, second = ([one.outputs[0].token_ids for one in way()] for way in ways)
        assert first != second, "the edit changes nothing, so that it was not in the engine"
        times = take_turns(ways, arguments.rounds)
        how = "compiled" if arguments.compiled else "eager"
        print(f"{arguments.prompts} prompts, {arguments.layers} layers, width {arguments.width}, rank 16, {how}")
        table = Table(arguments.json)
        table.ratio("tokens a second, served with the edit over without, at least 0.95", times[0], times[1])


if __name__ == "__main__":
    main()
