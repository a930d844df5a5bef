"""The list of analyses: which of the paper's tables and figures each answers, and the script that does."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .findings import Finding
from .subject import Subject

Analysis = Callable[[Subject], Finding]


@dataclass(frozen=True)
class ItemOfPaper:
    """One table or figure.

    Attributes:
        name: on the command line.
        where: what the paper calls it; empty where the question is our own.
        script: of `analyses/`.
        question: that it answers.
        needs: which behaviours its data must have: one of them, or both where `both` is set.
        both: see there.
    """

    name: str
    where: str
    script: str
    question: str
    needs: tuple[str, ...] = ("truth", "bias")
    both: bool = False

    @property
    def path(self) -> Path:
        """Of the script."""
        return scripts() / f"{self.script}.py"

    def analysis(self) -> Analysis:
        """The script's `run`."""
        spec = importlib.util.spec_from_file_location(f"sea_lens_analysis_{self.script}", self.path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.run


ITEMS = (
    ItemOfPaper(
        "t1", "Table 1", "truthfulness", "Is the model more truthful, and what would other methods do?", ("truth",)
    ),
    ItemOfPaper("generations", "Table 1", "generations", "Are generated answers truthful and informative?", ("truth",)),
    ItemOfPaper("bias", "Figure: BBQ", "bias", "Is the model less biased, by condition and category?", ("bias",)),
    ItemOfPaper("t2", "Table 2", "models", "Does it hold for other models?"),
    ItemOfPaper("t3", "Table 3", "ablation", "Which parts of the edit does its effect need?"),
    ItemOfPaper("t4", "Table 4", "capabilities", "What else does the edit change?"),
    ItemOfPaper("t5", "Table 5", "generalisation", "Does an edit fitted on BBQ act on CrowS-Pairs?", ("bias",)),
    ItemOfPaper("t6", "Table 6", "joint", "Does one edit of both behaviours do what two do?", both=True),
    ItemOfPaper("t7", "Table 7", "activation", "Which token's activation should be read?"),
    ItemOfPaper("efficiency", "Figure: data", "data_efficiency", "How many demonstrations does it take?"),
    ItemOfPaper("signature", "Figure: signature", "signature", "Which layers tell wanted from unwanted?"),
    ItemOfPaper("spectra", "Figure: spectra", "spectra", "How many directions hold the covariance?"),
    ItemOfPaper("projections", "Figure: t-SNE", "projections", "What does the edit do to the cloud of activations?"),
    ItemOfPaper("features", "Φ-SEA", "feature_maps", "Do feature functions help?"),
    ItemOfPaper("release", "", "release", "What does the released code do differently, and what does each do?"),
    ItemOfPaper("carriers", "", "carriers", "Which layers, heads and directions carry the effects? The same ones?"),
)


def scripts() -> Path:
    """The folder of the scripts: inside the installed package, or beside it in a clone of the repository.

    Raises:
        InputError: it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "analyses", package.parent / "analyses"):
        if (folder / "truthfulness.py").is_file():
            return folder
    raise InputError("the folder of the analyses is neither in the package nor beside it: install sea_lens anew")


def chosen(names: Sequence[str]) -> list[ItemOfPaper]:
    """The items of these names, in the list's order; all of them for "all".

    Raises:
        InputError: an unknown name.
    """
    known = {item.name: item for item in ITEMS}
    if unknown := [name for name in names if name != "all" and name not in known]:
        raise InputError(f"unknown items {', '.join(unknown)}: expected all, or some of {', '.join(known)}")
    return [item for item in ITEMS if "all" in names or item.name in names]
