"""What the contribution analyses cost, as ratios within one run (absolute times depend on the machine and its load).

    python timings/contributions.py [--layers 4] [--width 256] [--contrasts 24]

On a random Llama:
- `path` for all layers and directions, against as many edited forward passes as it has nodes (it should take less than
  4 times as long);
- exact patching of every head, against a plain loop of one head and one contrast at a time that makes both clean runs
  anew each time (it should be at least 3 times faster, with equal numbers);
- `mediation`, all edited layers x heads x ways by one backward pass, against a forward and backward pass over the same
  contrasts (it should take at most 8 times as long), and the exact values of its 20 strongest edges.

Memory, in numbers of the model's precision: `path` 3 · layers · batch · positions · width beside what autograd keeps;
patching 2 · layers · batch · positions · heads · d_head.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

import sea_lens as sl
from sea_lens.contributions.study import Study
from sea_lens.measure.scorer import contrast_scorer, contrast_values
from sea_lens.models.lens import Lens
from sea_lens.testbed.tokenizer import word_tokenizer

WORDS = [f"w{i}" for i in range(500)]


def random_model(layers: int, width: int, backend: str) -> object:
    """A Llama with random weights."""
    tokenizer = word_tokenizer(WORDS, context=64)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        network = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in network.parameters():
                # Larger than at initialisation, so that heads matter.
                parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return sl.load_model(folder, backend)


def contrasts_of(n: int) -> sl.Contrasts:
    """Random prompts of twelve words with one-word completions."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(len(WORDS), (n, 14), generator=generator).tolist()
    texts = [[WORDS[i] for i in row] for row in drawn]
    return sl.Contrasts(
        sl.Contrast(" ".join(row[:12]), f" {row[12]}", f" {row[13]}") for row in texts if row[12] != row[13]
    )


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Median wall time, after one call that warms up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def plain_loop(model: object, edit: sl.SpectralEdit, contrasts: sl.Contrasts) -> torch.Tensor:
    """Sufficiency of every head, one head and one contrast at a time."""
    lens = Lens.of(model)
    hooks = edit.functions(model, edit.check(model))
    values = torch.zeros(len(contrasts), lens.n_layers, lens.n_heads, dtype=torch.float64)
    for i, contrast in enumerate(contrasts):
        scorer = contrast_scorer(model, [contrast])
        (batch,) = scorer.batches
        for layer in range(lens.n_layers):
            point = f"blocks.{layer}.attn.hook_z"
            for head in range(lens.n_heads):
                clean = contrast_values(scorer.log_probs())
                with torch.no_grad():
                    source = lens.read(batch.tokens, batch.mask, [point], hooks)[point]

                def patch(z: torch.Tensor, head: int = head, source: torch.Tensor = source) -> torch.Tensor:
                    patched = z.clone()
                    patched[:, :, head] = source[:, :, head]
                    return patched

                with lens.hooks([(point, patch)]):
                    values[i, layer, head] = (contrast_values(scorer.log_probs()) - clean).item()
    return values


def main() -> None:
    """Measure and print the three ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--contrasts", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = random_model(arguments.layers, arguments.width, arguments.backend)
    contrasts = contrasts_of(arguments.contrasts)
    generator = torch.Generator().manual_seed(2)
    shape = (200, arguments.layers, arguments.width)
    neutral, positive, negative = (torch.randn(shape, generator=generator) for _ in range(3))
    edit = sl.fit_activations(neutral, positive, negative, rank=16)
    lens = Lens.of(model)
    print(
        f"{arguments.layers} layers, width {arguments.width}, {len(contrasts)} contrasts, {lens.backend}, {lens.device}"
    )

    batch_size = arguments.batch_size
    study = Study.of(model, edit, contrasts, batch_size=batch_size)

    def edited_forward() -> object:
        with edit.applied(model):
            return contrast_values(study.scorer.log_probs())

    def directions() -> object:
        # Any tolerance will do here: the nodes stay at their first number, 4.
        return sl.direction_contributions(model, edit, contrasts, describe=0, batch_size=batch_size, tolerance=1e9)

    forward, path = seconds(edited_forward, arguments.repeats), seconds(directions, arguments.repeats)
    print(f"path, all layers and directions: {path / (4 * forward):.2f} times (4 nodes x one edited forward pass)")

    start = time.perf_counter()
    expected = plain_loop(model, edit, contrasts)
    loop = time.perf_counter() - start
    start = time.perf_counter()
    found = sl.head_contributions(model, edit, contrasts, "sufficiency", batch_size=batch_size)
    patching = time.perf_counter() - start
    error, size = (found.item_values - expected).abs().max().item(), expected.abs().max().item()
    print(f"exact head patching: {loop / patching:.1f} times faster than a plain loop")
    print(f"    largest difference {error:.1e} of values up to {size:.1e} nats")

    def forward_and_backward() -> None:
        for batch in study.scorer.batches:
            leaves: list[torch.Tensor] = []

            def begin(x: torch.Tensor, leaves: list[torch.Tensor] = leaves) -> torch.Tensor:
                leaves.append(x.detach().requires_grad_())
                return leaves[-1]

            with lens.hooks([(lens.point("resid_pre", 0), begin)]):
                rows = study.scorer.batch_log_probs(batch)
            torch.autograd.grad(rows.sum(), leaves)

    def estimate() -> object:
        return sl.mediation(model, edit, contrasts, exact=0, batch_size=batch_size)

    both, all_edges = seconds(forward_and_backward, arguments.repeats), seconds(estimate, arguments.repeats)
    start = time.perf_counter()
    checked = sl.mediation(model, edit, contrasts, exact=20, batch_size=batch_size)
    exact = time.perf_counter() - start - all_edges
    print(f"mediation, {len(checked.edges)} edges: {all_edges / both:.2f} times a forward and a backward pass")
    print(f"    its 20 strongest edges exactly: {exact / both:.0f} times, {exact:.1f} s")
    print(f"    correlation of estimates and exact values: {checked.details['correlation']:.3f}")


if __name__ == "__main__":
    main()
