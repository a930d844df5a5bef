"""Direct contributions of heads to the change of the logit difference (docs/method.md 9.1).

The direct contribution of a head is what it writes at the last prompt position, read off as logit difference through
the final norm and the unembedding, in the edited run minus the unedited run, each run with its own norm scale. Given
its scale, the final norm is linear up to a constant that both runs have, so the contributions of all heads, MLPs,
biases, the embedding and the edit's own displacements add up to the change of the logit difference. This closure rests
on three identities, which are checked in every call and in both runs: the heads and the bias of a layer sum to its
attention output, the parts sum to the residual stream behind the last layer, and this stream read off gives the model's
logits. Where one of them does not hold numerically, the function refuses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor

from ..edits.base import Edit
from ..errors import DemonstrationError, UnsupportedModelError
from ..measure.scorer import EncodedContrasts
from ..models.lens import FINAL_NORM, HookFunction, Lens
from ..models.predictions import predict
from ..models.readout import LogitReadout, Norm, attention_bias, head_outputs, probe_norm
from ..models.tokens import Batch, batches
from .results import HeadContributions
from .study import Study, measured_with

OTHERS = ("embedding", "attention_bias", "mlp", "edit")


def direct_contributions(study: Study, tolerance: float | None, control: Sequence[Edit] = ()) -> HeadContributions:
    """`head_contributions` with method "direct"; errors as there."""
    study.check_control(control)
    lens = study.lens
    pairs = first_tokens(study.contrasts)
    allowed = tolerance if tolerance is not None else 1e-4 if lens.dtype.itemsize >= 4 else 0.03
    readout = _Readout.of(lens, allowed)
    planned = list(batches(study.contrasts.prompts, study.batch_size))
    order = torch.tensor([row for batch in planned for row in batch.rows]).argsort()

    def measured(functions: list[tuple[str, HookFunction]]) -> list[_Parts]:
        with torch.no_grad():
            return [readout.parts(_run(lens, batch, functions), pairs[batch.rows].to(lens.device)) for batch in planned]

    unedited = measured([])

    def measure(one: Study) -> list[HeadContributions]:
        functions = one.activation_edit("method 'direct'").functions(one.model, one.where)
        parts = [after - before for after, before in zip(measured(functions), unedited, strict=True)]
        return [
            HeadContributions(
                "direct",
                torch.cat([part.heads for part in parts])[order],
                torch.cat([part.difference for part in parts])[order],
                item_others={name: torch.cat([part.others[name] for part in parts])[order] for name in OTHERS},
            )
        ]

    return measured_with(study, control, measure)[0]


def first_tokens(contrasts: EncodedContrasts) -> Int[Tensor, "contrasts 2"]:
    """The first tokens of each target and foil.

    Raises:
        DemonstrationError: there is no last prompt position to read them at, or they are the same; names the contrast.
    """
    pairs = []
    for i, (named, prompt) in enumerate(zip(contrasts.names, contrasts.prompts, strict=True)):
        firsts = []
        for name, (tokens, start) in zip(("target", "foil"), contrasts.completions[2 * i : 2 * i + 2], strict=True):
            if start != len(prompt):
                raise DemonstrationError(
                    f"{named}, {name}, changes the tokens of its prompt, so there is no last prompt position to read "
                    f"at: begin the completion with a space"
                )
            firsts.append(tokens[start])
        if firsts[0] == firsts[1]:
            raise DemonstrationError(f"{named}: target and foil begin with the same token, so their logits agree")
        pairs.append(firsts)
    return torch.tensor(pairs)


@dataclass(frozen=True)
class _Run:
    """One run at the last prompt positions: activations by hook point, the edit's displacements, logits."""

    seen: Mapping[str, Tensor]
    displacements: Mapping[str, Tensor]
    logits: Float[Tensor, "batch d_vocab"]

    def displacement(self, name: str) -> Tensor:
        """How far the edit moved the activation at a hook point; zero where there is no edit."""
        moved = self.displacements.get(name)
        return torch.zeros_like(self.seen[name]) if moved is None else moved


def _run(lens: Lens, batch: Batch, functions: list[tuple[str, HookFunction]]) -> _Run:
    tokens, mask = batch.tokens, batch.mask
    last = mask.sum(1) - 1
    rows = torch.arange(len(tokens))
    seen: dict[str, Tensor] = {}
    displacements: dict[str, Tensor] = {}

    def save(name: str) -> HookFunction:
        def hook(x: Tensor) -> None:
            seen[name] = x[rows, last].double().to(lens.device)

        return hook

    def displacing(name: str, function: HookFunction) -> HookFunction:
        def hook(x: Tensor) -> Tensor:
            edited = function(x)
            assert edited is not None
            displacements[name] = (edited[rows, last].double() - x[rows, last].double()).to(lens.device)
            return edited

        return hook

    names = [lens.point("resid_pre", 0)]
    if lens.has_final_norm:
        names.append(lens.norm_scale(FINAL_NORM))
    for layer in range(lens.n_layers):
        names += [lens.point("z", layer), *_written(lens, layer)]
        if (norm := lens.norm_behind("attn_out", layer)) is not None:
            names.append(lens.norm_scale(norm))
    hooks = [(name, displacing(name, function)) for name, function in functions]
    with lens.hooks([*hooks, *((name, save(name)) for name in names)]):
        logits = predict(lens, tokens, mask).logits(rows, last).double()
    return _Run(seen, displacements, logits)


def _written(lens: Lens, layer: int) -> list[str]:
    """Hook points at which an edit moves the residual stream; a block of attention alone has no MLP."""
    kinds = ("attn_out", "mlp_out", "resid_post") if lens.has_site("mlp_out", layer) else ("attn_out", "resid_post")
    return [lens.point(kind, layer) for kind in kinds]


@dataclass(frozen=True)
class _Parts:
    """A logit difference and the parts that sum to it."""

    heads: Float[Tensor, "batch n_layers n_heads"]
    others: dict[str, Float[Tensor, "batch n_layers"]]
    difference: Float[Tensor, " batch"]

    def __sub__(self, other: "_Parts") -> "_Parts":
        others = {name: values - other.others[name] for name, values in self.others.items()}
        return _Parts(self.heads - other.heads, others, self.difference - other.difference)


@dataclass(frozen=True)
class _Readout:
    """Reads logit differences off the parts of a residual stream."""

    lens: Lens
    final: LogitReadout
    attention_norms: list[tuple[str, Norm] | None]
    tolerance: float

    @classmethod
    def of(cls, lens: Lens, tolerance: float) -> "_Readout":
        paths = [lens.norm_behind("attn_out", layer) for layer in range(lens.n_layers)]
        norms = [None if path is None else (lens.norm_scale(path), probe_norm(lens, path)) for path in paths]
        return cls(lens, LogitReadout.of(lens), norms, tolerance)

    def parts(self, run: _Run, pairs: Int[Tensor, "batch 2"]) -> _Parts:
        """Split each row's logit difference; refuses where an identity does not hold."""
        lens, n_layers = self.lens, self.lens.n_layers
        columns = rearrange(self.final.columns(pairs), "batch two d_model -> two batch d_model")
        direction = columns[0] - columns[1]
        point = self.final.scale_point
        # Without a final norm the readout is linear as it is.
        scale = torch.ones_like(columns[0][:, :1]) if point is None else run.seen[point]

        def read(x: Float[Tensor, "batch *parts d_model"]) -> Float[Tensor, "batch *parts"]:
            widened = rearrange(scale, "batch 1 -> batch 1 1") if x.ndim == 3 else scale
            return einsum(self.final.norm.apply_linearly(x, widened), direction, "batch ... d, batch d -> batch ...")

        heads, others = [], {name: [] for name in OTHERS}
        embedding = run.seen[lens.point("resid_pre", 0)]
        stream = embedding
        for layer in range(n_layers):
            written, bias = self._attention(run, layer)
            edit = torch.stack([run.displacement(name) for name in _written(lens, layer)]).sum(0)
            mlp = torch.zeros_like(embedding)
            if lens.has_site("mlp_out", layer):
                point = lens.point("mlp_out", layer)
                mlp = run.seen[point] - run.displacement(point)
            stream = stream + reduce(written, "batch heads d_model -> batch d_model", "sum") + bias + mlp + edit
            heads.append(read(written))
            others["embedding"].append(read(embedding if layer == 0 else torch.zeros_like(embedding)))
            others["attention_bias"].append(read(bias))
            others["mlp"].append(read(mlp))
            others["edit"].append(read(edit))
        final = run.seen[lens.point("resid_post", n_layers - 1)]
        self._require(final, stream, "the residual stream is not the sum of its parts", "after the last layer")
        self._check_logits(run, final, scale, pairs)
        # What is constant (norm bias, b_U) cancels between runs, so it is left out of the difference as well.
        return _Parts(
            torch.stack(heads, 1).cpu(),
            {name: torch.stack(values, 1).cpu() for name, values in others.items()},
            read(final).cpu(),
        )

    def _attention(
        self, run: _Run, layer: int
    ) -> tuple[Float[Tensor, "batch heads d_model"], Float[Tensor, "batch d_model"]]:
        """What each head and the bias write to the residual stream, after the norm behind attention if there is one."""
        written = head_outputs(self.lens, layer, run.seen[self.lens.point("z", layer)])
        bias = attention_bias(self.lens, layer).expand_as(written[:, 0])
        behind = self.attention_norms[layer]
        if behind is not None:
            point, norm = behind
            scale = run.seen[point]
            written = norm.apply_linearly(written, rearrange(scale, "batch 1 -> batch 1 1"))
            bias = norm.apply_linearly(bias, scale) + norm.bias
        attn_point = self.lens.point("attn_out", layer)
        output = run.seen[attn_point] - run.displacement(attn_point)
        total = reduce(written, "batch heads d_model -> batch d_model", "sum") + bias
        self._require(output, total, "heads and bias do not sum to the attention output", f"at layer {layer}")
        return written, bias

    def _check_logits(
        self,
        run: _Run,
        final: Float[Tensor, "batch d_model"],
        scale: Float[Tensor, "batch 1"],
        pairs: Int[Tensor, "batch 2"],
    ) -> None:
        logits = self.final.logits(final, scale, pairs)
        self._require(run.logits.gather(1, pairs), logits, "the readout does not reproduce the logits", "at the end")

    def _require(self, measured: Tensor, rebuilt: Tensor, broken: str, where: str) -> None:
        error = (measured - rebuilt).abs().max().item()
        size = measured.abs().max().item()
        if not error <= self.tolerance * max(size, 1e-6):
            raise UnsupportedModelError(
                f"model {self.lens.name!r}: {broken} {where} (off by {error:.2e} of {size:.2e}), so direct "
                f"contributions would be wrong"
            )
