"""The matrices with which a plain model's MLPs and attention write, changed for good (docs/method.md 12.4)."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UnsupportedModelError
from .plain_model import PlainModel, unwrapped
from .plain_sites import Place
from .tokens import pad

# Options of configurations that give projections a bias, which is 0 where there was none.
_BIASES = ("mlp_bias", "attention_bias", "attention_out_bias", "use_bias", "bias")


def projection_of(plain: PlainModel, site: str, layer: int) -> tuple[Place, Any]:
    """The place of a site, and the module with the matrix that gives it (at site `z`: that reads it).

    Raises:
        UnsupportedModelError: a norm, a mixture of experts, an adapter or a matrix in few bits stands there, the matrix
            is shared with another module, or the site is the residual stream itself.
    """
    place = plain.place(site, layer)
    where = f"{site!r} of layer {layer} of model {plain.name!r} cannot be folded into weights"
    if site == "resid_post":
        raise UnsupportedModelError(f"{where}: it is a sum, which no matrix gives: expected mlp_out, attn_out or z")
    if place.projection is None:
        raise UnsupportedModelError(
            f"{where}: {place.path} ({type(place.module).__name__}) gives it, and no single matrix does, as behind a "
            f"norm or a mixture of experts"
        )
    module = plain.model.get_submodule(place.projection)
    weight: Any = getattr(module, "weight", None)
    home = type(module).__module__.split(".")[0]
    plainly = (home, type(module).__name__) in (("torch", "Linear"), ("transformers", "Conv1D"))
    if (
        not plainly
        or not isinstance(weight, Tensor)
        or weight.ndim != 2
        or not weight.is_floating_point()
        or weight.is_meta
    ):
        raise UnsupportedModelError(
            f"{where}: {place.projection} is a {type(module).__name__} of {getattr(weight, 'dtype', None)}: expected a "
            f"matrix of floating-point numbers in memory (adapters merged, no quantisation)"
        )
    holders = [name for name, one in plain.model.named_parameters(remove_duplicate=False) if one is weight]
    if len(holders) > 1:
        raise UnsupportedModelError(f"{where}: its matrix is also that of {', '.join(holders)}")
    return place, module


def write_map(
    plain: PlainModel,
    site: str,
    layer: int,
    matrix: Float[Tensor, "units d d"],
    offset: Float[Tensor, "units d"],
) -> Callable[[], None]:
    """Change a projection so that the site's activation x is matrix x + offset; computed in float64, rounded once.

    Returns:
        What puts the numbers back that were there.

    Raises:
        UnsupportedModelError: as `projection_of`, or an offset where the module has no bias (`give_biases`).
    """
    place, module = projection_of(plain, site, layer)
    transposed = type(module).__name__ == "Conv1D"
    own = module.weight.data.double()
    weight = own.T if transposed else own
    matrix, offset = matrix.to(weight), offset.to(weight)
    bias = module.bias.data.double() if module.bias is not None else weight.new_zeros(len(weight))
    if site == "z":
        columns = weight.unflatten(1, (len(matrix), -1))
        bias = bias + torch.einsum("ohd,hd->o", columns, offset)
        weight = torch.einsum("ohd,hde->ohe", columns, matrix).flatten(1)
    else:
        weight, bias = matrix[0] @ weight, matrix[0] @ bias + offset[0] / place.scale
    if module.bias is None and bool(bias.any()):
        raise UnsupportedModelError(f"{place.projection} has no bias, and the edit adds one")
    held = [(one, one.data) for one in (module.weight, module.bias) if one is not None]
    module.weight.data = (weight.T if transposed else weight).contiguous().to(module.weight.dtype)
    if module.bias is not None:
        module.bias.data = bias.to(module.bias.dtype)

    def put_back() -> None:
        for one, data in held:
            one.data = data

    return put_back


def give_biases(plain: PlainModel, site: str, layers: list[int]) -> Callable[[], None]:
    """Give the projections of a site a bias of 0, by the option of the model's own configuration that has them.

    Returns:
        What takes them away again.

    Raises:
        UnsupportedModelError: its configuration has no such option.
    """
    model = plain.model
    needed = {f"{projection_of(plain, site, layer)[0].projection}.bias" for layer in layers}
    for name in _BIASES:
        if getattr(model.config, name, None) is not False:
            continue
        config = copy.deepcopy(model.config)
        setattr(config, name, True)
        with torch.device("meta"):
            more = set(type(model)(config).state_dict()) - set(model.state_dict())
        if not needed <= more or not all(one.endswith(".bias") for one in more):
            continue
        modules = [model.get_submodule(one.removesuffix(".bias")) for one in more]
        for module in modules:
            zeros = module.weight.new_zeros(module.weight.shape[0])
            module.register_parameter("bias", torch.nn.Parameter(zeros, requires_grad=False))
        setattr(model.config, name, True)

        def take_away(name: str = name, modules: list[Any] = modules) -> None:
            setattr(model.config, name, False)
            for module in modules:
                module.register_parameter("bias", None)

        return take_away
    raise UnsupportedModelError(
        f"the edit adds a vector at {site!r}, the projections of model {plain.name!r} have no bias, and its "
        f"configuration has no option that gives them one: expected an edit without an offset (centre=False)"
    )


def logits_of(model: Any, rows: list[list[int]]) -> list[Float[Tensor, "pos d_vocab"]]:
    """Logits of a Hugging Face model on some rows of tokens, in float32 on the CPU; a row at a time."""
    found = []
    device = unwrapped(model).get_input_embeddings().weight.device
    with torch.no_grad():
        for row in rows:
            tokens, mask = pad([row])
            given = {"input_ids": tokens.to(device), "attention_mask": mask.to(device)}
            found.append(model(**given, use_cache=False).logits[0].float().cpu())
    return found
