"""What software made a result."""

from importlib.metadata import PackageNotFoundError, version


def versions(*more: str) -> dict[str, str]:
    """Versions of sea_lens and of the packages that its numbers depend on; `more` names others that a result needs."""
    found = {}
    for name in ("sea-lens", "torch", "transformer-lens", "transformers", "numpy", *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
