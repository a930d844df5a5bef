"""Shared fixtures: tiny random models of every family, and the files beside the project."""

import functools
import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import jaxtyping
import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from tiny import BACKENDS, PAIRS, save_tiny_model

torch.set_num_threads(1)
# No deadline: machines are shared, and a slow example is no wrong one. In CI the same examples every time.
settings.register_profile("sea_lens", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("sea_lens")

with warnings.catch_warnings():
    # Imported here once, since what other packages warn about at import is theirs.
    warnings.simplefilter("ignore")
    import transformer_lens
    import transformer_lens.model_bridge  # noqa: F401

CHECKED_ELSEWHERE = pytest.StashKey[bool]()
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hugging Face folders of tiny random models, by family; written when first asked for."""
    root = tmp_path_factory.mktemp("models")

    class Folders(dict):
        def __missing__(self, family: str) -> Path:
            self[family] = save_tiny_model(family, root / family)
            return self[family]

    return Folders()


@pytest.fixture(scope="session")
def loaded_models() -> dict[Any, Any]:
    """What `load_tiny` has loaded."""
    return {}


@pytest.fixture(scope="session")
def load_tiny(model_folders, loaded_models):
    """load_tiny(family, backend, dtype=...) gives one and the same model for the same arguments."""
    import sea_lens as sl

    loaded = loaded_models

    def load(family: str = "llama", backend: str = "bridge", dtype: torch.dtype = torch.float32):
        key = family, backend, dtype
        if key not in loaded:
            loaded[key] = sl.load_model(str(model_folders[family]), backend, device="cpu", dtype=dtype)
        return loaded[key]

    return load


@pytest.fixture(params=PAIRS, ids="-".join)
def any_model(request: pytest.FixtureRequest, load_tiny):
    """A tiny model of every family on every backend that is installed."""
    return load_tiny(*request.param)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend that is installed."""
    return request.param


@pytest.fixture
def model(load_tiny, backend):
    """A tiny Llama on every backend."""
    return load_tiny("llama", backend)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the project, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared beside the project")
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left alone with one of them at the end.

    And types and shapes are checked once: what runs on a HookedTransformer as well as on a bridge has them checked on
    the former.
    """
    items.sort(key=lambda item: item.path.name not in ("test_testbed.py", "test_third_party.py", "test_analyses.py"))
    known = {item.nodeid for item in items}
    for item in items:
        name, _, parameters = item.nodeid.partition("[")
        twin = f"{name}[{parameters.replace('bridge', 'hooked')}"
        item.stash[CHECKED_ELSEWHERE] = "bridge" in parameters and twin in known


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Types and shapes are checked in this test, unless they are in another that is the same."""
    jaxtyping.config.update("jaxtyping_disable", item.stash[CHECKED_ELSEWHERE])
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _nothing_stays_in_a_model(loaded_models):
    """A test that fails under an edit leaves the shared models to the next one as they were."""
    yield
    import sea_lens as sl

    for model in loaded_models.values():
        if sl.installed(model):
            sl.remove_all(model)


@pytest.fixture(scope="module")
def build():
    """build(name, backend) is a planted circuit, made once for a module."""
    from sea_lens.testbed.planted import planted

    return functools.cache(planted)
