"""What software made a result."""

from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Versions of sea_lens and of the packages that its numbers depend on."""
    found = {}
    for name in ("sea-lens", "torch", "transformer-lens", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
