"""Trains the shipped model: `python -m sea_lens.testbed.train --seed 0 --out DIR`.

A small Llama (three layers, grouped-query attention, RMSNorm) learns documents of two worlds (`corpus`) by next-word
prediction, and is written to DIR in Hugging Face format together with `world.json` and the training record. Answers
weigh more in the loss than other words: most of what a document holds (which question comes next) is drawn at random
and can only be guessed, and its noise would drown what there is to learn.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from .corpus import documents, vocabulary
from .peoples import Peoples
from .tokenizer import BOS, EOS, PAD, word_tokenizer
from .world import NAMES, World

STEPS = 6000
# Steps at first on documents of peoples alone. When a model begins to read scenes differs from seed to seed, and among
# documents of lands, which ask for memory, some seeds begin late or never.
FIRST_STEPS = 1500
BATCH_SIZE = 32
LEARNING_RATE = 2e-3
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.1
ANSWER_WEIGHT = 6.0
CONTEXT = 112


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model: 3 layers, width 128, 8 query heads over 4 key-value heads."""
    words = tokenizer.get_vocab()
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            bos_token_id=words[BOS],
            eos_token_id=words[EOS],
            pad_token_id=words[PAD],
        )
    )


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> Int[Tensor, "batch pos"]:
    """Documents as rows of tokens, BOS in front, EOS behind, right-padded."""
    texts = [f"{BOS} {document} {EOS}" for document in documents]
    return torch.tensor(tokenizer(texts, add_special_tokens=False, padding=True).input_ids)


def weigh(tokenizer: PreTrainedTokenizerFast, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch next"]:
    """What each word but the first counts in the loss: answers more, padding nothing."""
    known = tokenizer.get_vocab()
    words = tokens[:, 1:]
    answers = tokens[:, :-1] == known["A:"]
    # Of the world of lands, statements give answers too.
    answers |= torch.isin(words, torch.tensor([known[name] for name in NAMES]))
    return torch.where(answers, ANSWER_WEIGHT, 1.0) * (words != known[PAD])


def weighted_loss(
    model: LlamaForCausalLM, tokens: Int[Tensor, "batch pos"], weights: Float[Tensor, "batch next"]
) -> Float[Tensor, ""]:
    """Next-word cross-entropy in nats, each word counted by its weight."""
    logits = model(input_ids=tokens[:, :-1]).logits
    losses = torch.nn.functional.cross_entropy(
        rearrange(logits, "batch next d_vocab -> batch d_vocab next"), tokens[:, 1:], reduction="none"
    )
    return (losses * weights).sum() / weights.sum()


def train(seed: int, steps: int) -> tuple[World, PreTrainedTokenizerFast, LlamaForCausalLM, list[float]]:
    """Train one model; the same seed and step count give the same weights on the same machine and thread count.

    Returns:
        The world, the tokenizer, the model in evaluation mode, and the weighted loss of every step in nats.
    """
    world, peoples = World.generate(seed), Peoples.generate(seed)
    tokenizer = word_tokenizer(vocabulary(world, peoples), CONTEXT)
    torch.manual_seed(seed)
    model = build_model(tokenizer)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps, pct_start=min(0.3, WARMUP_STEPS / steps), anneal_strategy="cos"
    )
    stream = documents(world, peoples, "train", min(FIRST_STEPS, steps // 4) * BATCH_SIZE)
    losses = []
    for _ in track(range(steps), description=f"training seed {seed}"):
        tokens = encode(tokenizer, list(itertools.islice(stream, BATCH_SIZE)))
        loss = weighted_loss(model, tokens, weigh(tokenizer, tokens))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return world, tokenizer, model.eval(), losses


def main() -> None:
    """Parse the command line, train, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the world, the documents and the weights")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1, help="two take two thirds of the time of one")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    start = time.monotonic()
    world, tokenizer, model, losses = train(arguments.seed, arguments.steps)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    world.save(arguments.out / "world.json")
    record = {
        "seed": arguments.seed,
        "steps": arguments.steps,
        "threads": arguments.threads,
        "batch_size": BATCH_SIZE,
        "parameters": model.num_parameters(),
        "final_loss": sum(losses[-100:]) / len(losses[-100:]),
        "minutes": round((time.monotonic() - start) / 60, 1),
    }
    (arguments.out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
