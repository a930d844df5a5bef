import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sea_lens as sl
from sea_lens._support import storage


@pytest.fixture
def saved(tmp_path):
    x = torch.randn(8, 1, 4)
    path = tmp_path / "edit.safetensors"
    sl.fit_activations(x, x + 1, x - 1, rank=2).save(path)
    return path


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(sl.FileError, match="not a complete safetensors file"):
        sl.SpectralEdit.load(saved)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "trapped"), "w"))

    path = tmp_path / "edit.pt"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(sl.FileError, match="pickles are never read"):
        sl.SpectralEdit.load(path)
    assert not (tmp_path / "trapped").exists()


def test_foreign_and_missing_files_are_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(sl.FileError, match="that sea_lens did not write"):
        sl.SpectralEdit.load(tmp_path / "other.safetensors")
    with pytest.raises(sl.FileError, match=r"no such file|is a folder"):
        sl.SpectralEdit.load(tmp_path / "none.safetensors")
    with pytest.raises(sl.FileError, match=r"no such file|is a folder"):
        sl.SpectralEdit.load(tmp_path)


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    before = saved.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        storage.write_atomically(saved, "new")
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(sl.FileError, match=r"cannot write .*missing"):
        storage.write_atomically(tmp_path / "missing" / "edit.safetensors", b"")
