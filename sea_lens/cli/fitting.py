"""The command `fit`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..errors import InputError
from ..models.lens import Lens
from ..models.reading import Reading
from ..models.sites import Site
from ..spectral.capturing import capture
from ..spectral.edit import SpectralEdit
from ..spectral.features import feature_map
from ..spectral.fitting import fit_to_size
from ..spectral.ranks import Size
from ..spectral.store import check_store
from . import options as opt
from .files import check_output_file
from .methods_to_fit import METHODS, SPECTRAL, method_of

console = Console()


def run(
    model: opt.ModelOption,
    demonstrations: Annotated[Path, typer.Option("--demonstrations", help="File of demonstrations.")],
    out: Annotated[Path, typer.Option("--out", help="The edit to write (safetensors).")],
    form: opt.FormatOption = "jsonl",
    method: Annotated[str, typer.Option("--method", help=f"{', '.join((SPECTRAL, *METHODS))}.")] = SPECTRAL,
    energy: Annotated[str | None, typer.Option(help="K in (0, 1], or K+,K- ; 0.998 by default.")] = None,
    rank: Annotated[
        str | None, typer.Option(help="Rank k, or k+,k- ; instead of --energy. Also of lora and generalised_eigen.")
    ] = None,
    heads: Annotated[int | None, typer.Option(help="How many heads iti steers; 48 by default.", min=1)] = None,
    site: opt.SiteOption = "mlp_out",
    fit_site: Annotated[
        str | None, typer.Option(help="Read from another site; 'hidden_states' as the release.")
    ] = None,
    feature: opt.FeatureOption = "identity",
    layers: opt.FittedLayersOption = "all",
    position: Annotated[str, typer.Option(help="Token read: last, mean or random.")] = "last",
    neutral: Annotated[str, typer.Option(help="Neutral text: prompt or generated.")] = "prompt",
    centre: Annotated[bool, typer.Option("--centre", help="Subtract the sample means.")] = False,
    spectrum_power: Annotated[float, typer.Option(help="Power of the singular values that counts as energy.")] = 2.0,
    limit: opt.LimitOption = None,
    store: Annotated[
        Path | None,
        typer.Option(help="Folder to keep the activations in; a run that was interrupted goes on there."),
    ] = None,
    whole_spectrum: Annotated[
        bool, typer.Option("--whole-spectrum", help="Compute all singular values, for a plot of them.")
    ] = False,
    batch_size: opt.BatchSizeOption = 16,
    prepend_bos: opt.PrependBosOption = True,
    backend: opt.BackendOption = "auto",
    device: opt.DeviceOption = None,
    dtype: opt.DtypeOption = "auto",
    device_map: opt.DeviceMapOption = None,
    max_memory: opt.MaxMemoryOption = None,
) -> None:
    """Fit an edit from a file of demonstrations: a spectral one, or of another method (--method)."""
    opt.check_format(form)
    asked = {
        "energy": energy,
        "rank": rank,
        "heads": heads,
        "site": site if site != "mlp_out" else None,
        "fit_site": fit_site,
        "feature": feature if feature != "identity" else None,
        "layers": layers if layers != "all" else None,
        "position": position if position != "last" else None,
        "neutral": neutral if neutral != "prompt" else None,
        "centre": centre or None,
        "spectrum_power": spectrum_power if spectrum_power != 2.0 else None,
        "store": store,
        "whole_spectrum": whole_spectrum or None,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    other = method_of(method, given)
    if None not in (rank, energy):
        raise InputError("--rank and --energy: expected one of them")
    chosen_rank = None if rank is None else opt.read_pair(rank, "--rank", int)
    size = Size.of(0.998 if energy is None else opt.read_pair(energy, "--energy", float), chosen_rank, spectrum_power)
    feature_map(feature)
    Reading(site, fit_site, position, neutral)
    choice = opt.read_layers(layers)
    check_output_file(out, {"--demonstrations": demonstrations, "--model": model, "--store": store})
    if store is not None:
        check_store(store)
    demos = opt.read_demonstrations(demonstrations, form, limit)
    loaded = opt.open_model(model, backend, device, dtype, device_map, max_memory)
    if other is not None:
        of_method = {**given, **({"layers": choice} if "layers" in given else {}), **_whole(chosen_rank)}
        found = other.fit(loaded, demos, **of_method, batch_size=batch_size, prepend_bos=prepend_bos)
        found.save(out)
        console.print(f"wrote {out}: {found}"[:500], highlight=False, markup=False, soft_wrap=True)
        return
    size.check_width(Site.of(site).shape(Lens.of(loaded))[1])
    covariance = capture(
        loaded,
        demos,
        site=site,
        fit_site=fit_site,
        layers=choice,
        position=position,
        neutral=neutral,
        feature=feature,
        batch_size=batch_size,
        prepend_bos=prepend_bos,
        store=store,
    )
    edit = fit_to_size(covariance, size, centre, whole_spectrum=whole_spectrum)
    edit.save(out)
    print_ranks(edit)
    console.print(f"wrote {out}", highlight=False)


def _whole(rank: Any) -> dict[str, int]:
    """The one rank of a method that has no two sides."""
    if rank is None:
        return {}
    if not isinstance(rank, int):
        raise InputError("--rank: this method has one rank, got two")
    return {"rank": rank}


def print_ranks(edit: SpectralEdit) -> None:
    """The table of an edit's layers, ranks and signatures."""
    title = f"{edit.site}, {edit.feature.name}" + ("" if edit.n is None else f", {edit.n} demonstrations")
    table = Table("layer", "k+", "k-", "signature", title=title)
    for layer in edit.layers:
        pairs = [pair for key, pair in edit.ranks.items() if key in edit.unit_keys(layer)]
        kept, dropped = (" ".join(str(pair[side]) for pair in pairs) for side in (0, 1))
        table.add_row(str(layer), kept, dropped, "" if edit.signature is None else f"{edit.signature[layer]:.4g}")
    console.print(table)
