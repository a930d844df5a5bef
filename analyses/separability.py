"""How far apart a testbed model keeps truth and myth, and what an edit that knows both does.

    python analyses/separability.py [--testbed DIR]

At every layer, the MLP outputs at the end of all questions are regressed on one-hot truths and myths together. The two
sets of coefficients span a truth and a myth subspace; their overlap (mean squared cosine of the principal angles) is 1
where the model encodes both in the same directions. An edit with these subspaces for U+ and U- has seen the answers to
the test questions too, and so shows how much of an effect the model's directions leave to a fit from demonstrations.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from einops import einsum, rearrange

import sea_lens as sl
from sea_lens.testbed import PATH
from sea_lens.testbed.world import NAMES


def main() -> None:
    """Regress, print overlaps and the effects of the fitted edit and of the one that knows every answer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--testbed", type=Path, default=PATH, help="folder that sea_lens.testbed.train wrote")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bed = sl.testbed.load(path=arguments.testbed)
    questions = bed.world.questions
    prompts = bed.model.to_tokens([question.prompt() for question in questions], prepend_bos=True)

    one_hot = torch.eye(len(NAMES), dtype=torch.float64)
    answers = [[NAMES.index(getattr(question, kind)) for question in questions] for kind in ("truth", "myth")]
    design = rearrange([one_hot[names] for names in answers], "kind question name -> question (kind name)")
    design = design - design.mean(0)

    rank = len(NAMES) - 1
    captured = sl.capture(bed.model, bed.demonstrations, batch_size=64, progress=False)
    # The second gives its ranks to the edit that knows the answers.
    edit, of_rank, known = sl.fit(captured, energy=0.9999), sl.fit(captured, rank=rank), {}
    for layer in edit.layers:
        _, cache = bed.model.run_with_cache(prompts, names_filter=f"blocks.{layer}.hook_mlp_out")
        # All prompts have the same number of words, so that the last position is the end of each.
        activations = cache[f"blocks.{layer}.hook_mlp_out"][:, -1].double()
        activations = activations - activations.mean(0)
        coefficients = torch.linalg.lstsq(design, activations, driver="gelsd").solution
        explained = 1 - (activations - design @ coefficients).square().sum() / activations.square().sum()
        truth, myth = (
            torch.linalg.svd(codes, full_matrices=False).Vh[:rank].T
            for codes in rearrange(coefficients, "(kind name) d -> kind name d", kind=2)
        )
        overlap = torch.linalg.svdvals(einsum(truth, myth, "d i, d j -> i j")).square().mean()
        print(f"layer {layer}: truth and myth explain {explained:.0%} of the variance, overlap {overlap:.2f}")
        known[layer] = replace(of_rank.subspaces[layer], keep=truth[None], drop=myth[None])
    informed = replace(of_rank, subspaces=known, _cast={})
    for name, one in (("fitted on the train questions, K = 0.9999", edit), ("knowing every answer", informed)):
        print(f"{name}: {sl.effect(bed.model, one, bed.contrasts['test'], batch_size=64)}")


if __name__ == "__main__":
    main()
