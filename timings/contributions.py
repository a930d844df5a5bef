"""What the contribution analyses cost, as ratios within one run (absolute times depend on the machine and its load).

    python timings/contributions.py [--layers 4] [--width 256] [--contrasts 24]

On a random Llama:
- `path` for all layers and directions, against as many edited forward passes as it has nodes (it should take less than
  4 times as long);
- exact patching of every head, against a plain loop of one head and one contrast at a time that makes both clean runs
  anew each time (it should be at least 3 times faster, with equal numbers);
- `mediation`, all edited layers x heads x ways by one backward pass, against a forward and backward pass over the same
  contrasts (it should take at most 8 times as long), and the exact values of its 20 strongest edges.

Each is timed in turns with what it is compared with, in processor time of one thread.

Memory, in numbers of the model's precision: `path` 3 · layers · batch · positions · width beside what autograd keeps;
patching 2 · layers · batch · positions · heads · d_head.
"""

import argparse
import tempfile
import time

import torch
from measuring import Table, take_turns
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
    """Measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    Table.add_option(parser)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--contrasts", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = Table(arguments.json)
    model = random_model(arguments.layers, arguments.width, arguments.backend)
    contrasts = contrasts_of(arguments.contrasts)
    generator = torch.Generator().manual_seed(2)
    shape = (200, arguments.layers, arguments.width)
    neutral, positive, negative = (torch.randn(shape, generator=generator) for _ in range(3))
    edit = sl.fit_activations(neutral, positive, negative, rank=16)
    lens = Lens.of(model)
    told = f"{arguments.layers} layers, width {arguments.width}, {len(contrasts)} contrasts, {lens.backend}"

    batch_size = arguments.batch_size
    study = Study.of(model, edit, contrasts, batch_size=batch_size)

    def edited_forward() -> object:
        with edit.applied(model):
            return contrast_values(study.scorer.log_probs())

    def directions() -> object:
        # Any tolerance will do here: the nodes stay at their first number, 4.
        return sl.direction_contributions(model, edit, contrasts, describe=0, batch_size=batch_size, tolerance=1e9)

    nodes = 4
    edited_forward()
    path, forward = take_turns([directions, edited_forward], arguments.repeats)
    over = [nodes * one for one in forward]
    table.ratio(
        f"path by layers and directions / {nodes} nodes x an edited forward pass", path, over, "at most 4", told
    )

    found, expected = [], []

    def patching() -> None:
        found.append(sl.head_contributions(model, edit, contrasts, "sufficiency", batch_size=batch_size).item_values)

    def loop() -> None:
        expected.append(plain_loop(model, edit, contrasts))

    one_by_one, together = take_turns([loop, patching], 1)
    off, size = (found[0] - expected[0]).abs().max().item(), expected[0].abs().max().item()
    what = "a plain loop over heads and contrasts / exact patching of every head"
    table.ratio(what, one_by_one, together, "at least 3", f"off by {off:.0e} of up to {size:.0e} nats; {told}")

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

    estimate()
    all_edges, both = take_turns([estimate, forward_and_backward], arguments.repeats)
    start = time.thread_time()
    checked = sl.mediation(model, edit, contrasts, exact=20, batch_size=batch_size)
    exact = time.thread_time() - start - min(all_edges)
    what = f"mediation of {len(checked.edges)} edges by one backward pass / a forward and a backward pass"
    table.ratio(what, all_edges, both, "at most 8", told)
    correlation = checked.details["correlation"]
    note = f"{exact:.1f} s; their correlation with the estimates {correlation:.3f}"
    table.number(
        "mediation, its 20 strongest edges exactly / a forward and a backward pass", exact / min(both), "", note
    )


if __name__ == "__main__":
    main()
