"""Training the adapters of `lora`: which weights, on which tokens, by which steps."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from einops import rearrange

from .._support.progress import tracked
from ..errors import UnsupportedModelError
from ..models.lens import Lens
from ..models.tokens import encode, encode_completion, pad
from ..texts.demonstrations import Demonstrations

# What Hugging Face calls an MLP's output projection.
_PROJECTIONS = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc2")

Example = tuple[list[int], int]
"""The tokens of a text, and the place of the first one that is trained on."""


def training_examples(lens: Lens, demonstrations: Demonstrations, prepend_bos: bool) -> list[Example]:
    """The tokens of each positive text, and where training on them begins.

    It begins behind the neutral text, or at the second token where the positive text does not begin with the neutral
    one.

    Raises:
        DemonstrationError: one does not fit the model's context; names it.
    """
    examples = []
    for name, one in zip(demonstrations.names, demonstrations, strict=True):
        if one.positive.startswith(one.neutral) and one.positive != one.neutral:
            rest = one.positive[len(one.neutral) :]
            examples.append(encode_completion(lens, one.neutral, rest, prepend_bos=prepend_bos, what=name))
        else:
            examples.append((encode(lens, one.positive, prepend_bos=prepend_bos, what=name), 1))
    return examples


def output_projections(hf_model: Any, lens: Lens) -> list[str]:
    """The output projection of each layer's MLP, by its name in the Hugging Face model.

    Raises:
        UnsupportedModelError: there is not just one in each layer.
    """
    names = [name for name, _ in hf_model.named_modules() if name.endswith(_PROJECTIONS)]
    if len(names) != lens.n_layers:
        raise UnsupportedModelError(
            f"model {lens.name!r} has {len(names)} output projections of MLPs that are called one of "
            f"{', '.join(_PROJECTIONS)}: expected one in each of its {lens.n_layers} layers"
        )
    return names


def train_adapters(
    adapted: Any,
    examples: Sequence[Example],
    learning_rate: float,
    epochs: int,
    batch_size: int,
    device: torch.device,
    progress: bool,
) -> list[float]:
    """Train the adapters, and return the mean loss of each epoch in nats per token."""
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    totals = torch.zeros(epochs, 2, dtype=torch.float64)

    def steps() -> Iterator[tuple[int, list[Example]]]:
        for epoch in range(epochs):
            order = torch.randperm(len(examples)).tolist()
            for start in range(0, len(order), batch_size):
                yield epoch, [examples[i] for i in order[start : start + batch_size]]

    adapted.train()
    n_steps = epochs * -(-len(examples) // batch_size)
    with torch.enable_grad():
        for epoch, batch in tracked(steps(), "training", n_steps, show=progress):
            tokens, mask = (x.to(device) for x in pad([row for row, _ in batch]))
            wanted = mask.clone()
            for row, (_, start) in enumerate(batch):
                wanted[row, :start] = 0
            logits = adapted(input_ids=tokens, attention_mask=mask).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(
                rearrange(logits.float(), "batch pos d_vocab -> (batch pos) d_vocab"),
                rearrange(tokens[:, 1:], "batch pos -> (batch pos)"),
                reduction="none",
            )
            weights = rearrange(wanted[:, 1:], "batch pos -> (batch pos)")
            total = (losses * weights).sum()
            optimiser.zero_grad(set_to_none=True)
            (total / weights.sum()).backward()
            optimiser.step()
            totals[epoch] += torch.tensor([total.item(), weights.sum().item()])
    return (totals[:, 0] / totals[:, 1]).tolist()
