"""Files: what is damaged, impossible, hostile or about to be overwritten is refused; what was killed goes on."""

import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_saved_edits import EDITS
from tiny import demonstrations, sentence

import sea_lens as sl
from sea_lens._support import files
from sea_lens.cli.files import check_output_file, output_folder
from sea_lens.cli.main import naming_the_option
from sea_lens.cli.resume import decoded, encoded
from sea_lens.contributions.results import DirectionContributions, DirectionDescription, LayerContributions
from sea_lens.evaluation.capability import Capability
from sea_lens.evaluation.fingerprints import edit_identity
from sea_lens.evaluation.journal import Journal
from sea_lens.evaluation.tuning_results import Tuning

PROJECT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
GOLDEN = sorted((PROJECT / "tests" / "golden").glob("*/*.safetensors"))


def covariance(n=5, feature="tanh"):
    empty = sl.CrossCovariance.empty((0, 2), 1, 4, site="mlp_out", feature=sl.FEATURE_MAPS[feature])
    neutral, positive, negative = torch.randn(3, n, 2, 1, 4, dtype=torch.float64)
    return empty.updated(neutral, positive, negative)


def evaluation(n=7, right=lambda i: i % 2):
    rows = [{"row": i + 1, "accuracy": float(right(i)), "accuracy_normalised": 1.0} for i in range(n)]
    return sl.Evaluation(Capability(), rows, {"data": {"sha256": "x"}})


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


# --- Seals ----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_a_saved_file_is_refused_each_time(tmp_path):
    rng, path, refused = random.Random(0), tmp_path / "file", 0
    saved: list[tuple[Any, Any]] = [(edit(), sl.load_edit) for edit in EDITS.values()]
    saved += [(covariance(), sl.CrossCovariance.load), (evaluation(), sl.Evaluation.load)]
    for place in range(1000):
        one, load = saved[place % len(saved)]
        one.save(path)
        content = path.read_bytes()
        path.write_bytes(flipped(content, rng.randrange(8 * len(content))))
        try:
            load(path)
        except sl.FileError:
            refused += 1
    assert refused == 1000


@pytest.mark.parametrize("name", list(EDITS))
def test_equal_edits_give_equal_bytes_and_one_identity(name, tmp_path):
    EDITS[name]().save(tmp_path / "first")
    for _ in range(8):
        EDITS[name]().save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / "first").read_bytes()
    loaded: Any = sl.load_edit(tmp_path / "first")
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "first").read_bytes()
    assert loaded.digest == EDITS[name]().digest
    assert edit_identity(loaded) == edit_identity(EDITS[name]())


def test_an_identity_is_the_same_in_another_process(tmp_path):
    EDITS["spectral"]().save(tmp_path / "edit")
    script = "import sys, sea_lens as sl; print(sl.load_edit(sys.argv[1]).digest)"
    ran = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "edit"], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == EDITS["spectral"]().digest


def test_any_reader_of_safetensors_reads_what_is_saved(tmp_path):
    edit = EDITS["spectral of heads"]()
    edit.save(tmp_path / "edit.safetensors")
    found = load_file(tmp_path / "edit.safetensors")
    assert found.keys() == edit.tensors().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in edit.tensors().items())


def test_a_file_that_has_lost_its_seal_is_refused(tmp_path):
    path = tmp_path / "edit.safetensors"
    EDITS["spectral"]().save(path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for lost in ("sea_lens.sha256", "sea_lens.format"):
        kept = {name: value for name, value in header["__metadata__"].items() if name != lost}
        text = json.dumps(header | {"__metadata__": kept}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
        with pytest.raises(sl.FileError, match="damaged"):
            sl.load_edit(path)
    evaluation().save(path)
    found = json.loads(path.read_text())
    for lost in ("sha256", "form"):
        path.write_text(json.dumps({name: value for name, value in found.items() if name != lost}))
        with pytest.raises(sl.FileError, match="damaged"):
            sl.Evaluation.load(path)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_files_without_seals_of_version_0_1_0_load(path, tmp_path):
    load = sl.CrossCovariance.load if "covariance" in path.stem else sl.load_edit
    loaded: Any = load(path)
    loaded.save(tmp_path / "new")
    again: Any = load(tmp_path / "new")
    if isinstance(again, sl.CrossCovariance):
        assert all(torch.equal(again.omega(layer)[0], loaded.omega(layer)[0]) for layer in loaded.layers)
    else:
        assert again.digest == loaded.digest


@pytest.mark.parametrize("path", [path for path in GOLDEN if "spectral" in path.stem], ids=lambda path: path.stem)
def test_an_old_file_is_believed_no_more_than_its_content(path, tmp_path):
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]

    def refused(tensors, header):
        given = {**metadata, "sea_lens.header": json.dumps(header)}
        save_file(tensors, tmp_path / "edit", given)
        with pytest.raises(sl.FileError):
            sl.load_edit(tmp_path / "edit")

    tensors, header = load_file(path), json.loads(metadata["sea_lens.header"])
    refused({name: 5 * x if name.endswith("keep") else x for name, x in tensors.items()}, header)
    refused({name: 0 * x - 7 if name.endswith("keep_rank") else x for name, x in tensors.items()}, header)
    refused({name: x * torch.nan if name.endswith("values") else x for name, x in tensors.items()}, header)
    for change in ({"n": -5}, {"n": 1.0}, {"site": "z"}, {"site": "nosuch"}, {"provenance": []}, {"signatures": {}}):
        refused(tensors, {**header, **change})


# --- Content, where it is made --------------------------------------------------------------------------------------

IMPOSSIBLE: dict[str, Any] = {
    "factors five times as long": lambda e: replace(
        e, subspaces={0: replace(e.subspaces[0], keep=5 * e.subspaces[0].keep)}
    ),
    "a negative rank": lambda e: replace(e, subspaces={0: replace(e.subspaces[0], keep_rank=torch.tensor([-7]))}),
    "values that ascend": lambda e: replace(
        e, subspaces={0: replace(e.subspaces[0], drop_values=e.subspaces[0].drop_values.flip(-1))}
    ),
    "NaN": lambda e: replace(e, subspaces={0: replace(e.subspaces[0], keep=torch.nan * e.subspaces[0].keep)}),
    "fewer than no demonstrations": lambda e: replace(e, n=-5),
    "another site": lambda e: replace(e, site="nosuch"),
    "a site of heads": lambda e: replace(e, site="z", provenance={"model": {"n_heads": 8, "d_head": 4}}),
    "another rank than was asked for": lambda e: replace(e, options={**e.options, "rank": [1, 1]}),
    "a rank and an energy": lambda e: replace(e, options={**e.options, "energy": [0.9, 0.9]}),
    "an infinite signature": lambda e: replace(e, signatures=dict.fromkeys(e.layers, float("inf"))),
    "no layers": lambda e: replace(e, subspaces={}),
    "a model that is no object": lambda e: replace(e, provenance={"model": 3}),
    "other numbers of demonstrations": lambda e: replace(e, provenance={"demonstrations": [{"n": 4}]}),
}


@pytest.mark.parametrize("case", list(IMPOSSIBLE))
def test_a_spectral_edit_that_no_fit_gives_cannot_be_made(case):
    with pytest.raises(sl.InputError, match="this is no spectral edit"):
        IMPOSSIBLE[case](EDITS["spectral"]())


def test_an_energy_that_the_ranks_do_not_have_is_refused():
    three: Any = torch.randn(3, 9, 1, 6, dtype=torch.float64)
    edit = sl.fit_activations(*three, energy=0.9)
    assert sl.fit_activations(*three, energy=1.0).ranks[0][0] >= edit.ranks[0][0]
    with pytest.raises(sl.InputError, match="ranks"):
        replace(edit, options={**edit.options, "energy": [0.1, 0.1]})


def test_other_edits_that_no_method_gives_cannot_be_made():
    iti, leace, lora = EDITS["ITI"](), EDITS["LEACE"](), EDITS["LoRA"]()
    eraser, accuracies = leace.erasers[0], iti.accuracies
    for make, message in (
        (lambda: replace(iti, heads=((1, 2), (1, 2))), "has heads"),
        (lambda: replace(iti, heads=((1, 0),)), "has heads"),
        (lambda: replace(iti, accuracies=2 * accuracies), "no share"),
        (lambda: replace(iti, accuracies=1 - accuracies), "best probes"),
        (lambda: replace(iti, site="mlp_out"), "one unit a layer"),
        (lambda: replace(leace, erasers={0: replace(eraser, left=2 * eraser.left)}), "no projection"),
        (lambda: replace(lora, losses=(float("nan"),)), "a loss"),
        (lambda: replace(lora, provenance={"rank": 5}), "have rank"),
        (lambda: replace(EDITS["mean difference"](), signatures={0: -1.0, 1: 1.0}), "signature"),
    ):
        with pytest.raises(sl.InputError, match=message):
            make()


def test_sums_that_no_demonstrations_have_are_refused(tmp_path):
    sound = covariance()
    sound.save(tmp_path / "sums")
    sums: Any = sound.statistics
    for change in (
        {"n": -5},
        {"n": 2.0},
        {"layers": (2, 0)},
        {"layers": (0, 0)},
        {"site": "nosuch"},
        {"statistics": replace(sums, single=sums.single.each(lambda x: x[:, :, :3]))},
        {"statistics": replace(sums, single=sums.single.each(lambda x: x.float()))},
    ):
        with pytest.raises((sl.InputError, TypeError)):  # the tests' own check of types may come first
            replace(sound, **change)
    for change, message in (
        ({"statistics": replace(sums, single=sums.single.each(lambda x: x * torch.nan))}, "NaN"),
        ({"statistics": replace(sums, single=sums.single.each(lambda x: x + 6))}, "5 values of 'tanh'"),
        ({"statistics": replace(sums, outer=(sums.outer[0], sums.outer[1] - 9))}, "5 values of 'tanh'"),
        ({"statistics": replace(sums, n=0)}, "no demonstrations"),
        ({"provenance": {"demonstrations": [{"n": 4}]}}, "cannot come of"),
        ({"provenance": {"model": {"d_model": 5}}}, "another width"),
        ({"provenance": {"model": {"n_layers": 2}}}, "of a model of 2"),
    ):
        with pytest.raises(sl.InputError, match=message):
            replace(sound, **change).save(tmp_path / "no")
    one = covariance(1, "identity")
    sums = one.statistics.sums(one.feature)
    with pytest.raises(sl.InputError, match="not the product"):
        replace(one, statistics=replace(sums, outer=(2 * sums.outer[0], sums.outer[1]))).check()
    assert sl.CrossCovariance.load(tmp_path / "sums").n == 5
    assert not (tmp_path / "no").exists()


# --- The numerical rank ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [{"rank": 4}, {"energy": 0.99}, {}])
def test_equal_demonstrations_centred_have_nothing_to_fit(dtype, size):
    one: Any = torch.randn(3, 1, 2, 32, dtype=dtype).expand(3, 12, 2, 32)
    with pytest.raises(sl.ActivationError, match=r"layer 0: the cross-covariance is zero"):
        sl.fit_activations(*one, centre=True, **size)
    # Nearly equal: what differs is the activations' own rounding.
    noise = 1 + torch.finfo(dtype).eps * torch.randn(3, 12, 2, 32, dtype=dtype)
    with pytest.raises(sl.ActivationError, match=r"the cross-covariance is zero"):
        sl.fit_activations(*(one * noise), centre=True, **size)


def test_a_rank_above_the_numerical_rank_is_cut_to_it_and_said():
    three: Any = torch.randn(3, 5, 2, 16)
    with pytest.warns(UserWarning, match=r"above the numerical rank .* 0 k\+ 5 of 8, 0 k- 5 of 8, 1 k\+"):
        edit = sl.fit_activations(*three, rank=8)
    assert set(edit.ranks.values()) == {(5, 5)}
    with pytest.warns(UserWarning, match=r"0 k\+ 4 of 5"):
        sl.fit_activations(*three, rank=5, centre=True)
    assert set(sl.fit_activations(*three, rank=5).ranks.values()) == {(5, 5)}
    assert set(sl.fit_activations(*three, energy=1.0, spectrum_power=0.1).ranks.values()) == {(5, 5)}


# --- Journals and results -------------------------------------------------------------------------------------------

IDENTITY = {"data": {"sha256": "a"}, "predictions": [-1.25, 2.0]}


def journal(path, parts=3):
    found = Journal(path, IDENTITY)
    for part in range(parts):
        found.add(part, [{"row": 2 * part + i + 1, "accuracy": 1.0} for i in range(2)])
    return found


def test_a_changed_journal_is_refused_or_ends_before_the_change(tmp_path):
    path = tmp_path / "journal"
    whole, content, rng = journal(path).parts, path.read_bytes(), random.Random(0)
    for _ in range(300):
        path.write_bytes(flipped(content, rng.randrange(8 * len(content))))
        try:
            found = Journal(path, IDENTITY).parts
        except (sl.FileError, sl.MismatchError):
            continue
        # The last line's own end: that part is done again.
        assert found == {part: rows for part, rows in whole.items() if part < len(found)}
        assert len(found) >= 2


def test_parts_of_a_journal_cannot_be_swapped_doubled_emptied_or_lost(tmp_path):
    path = tmp_path / "journal"
    journal(path)
    head, first, second, third = path.read_bytes().splitlines(keepends=True)
    other = tmp_path / "other"
    journal(other, 1)
    for lines in (
        [head, second, first, third],
        [head, first, first, second],
        [head, first, third],
        [head, second],
        [head, b"\n", first],
        [head, first.replace(b'"row": 1', b'"row": 3')],
        [head, b"[" * 3000 + b"\n"],
        [first, head],
        [b"[" * 3000 + b"\n"],
        [head[:20]],
        [b"\xff\xfe" + head],
    ):
        path.write_bytes(b"".join(lines))
        with pytest.raises(sl.FileError, match="delete it to start anew"):
            Journal(path, IDENTITY)
        assert path.read_bytes() == b"".join(lines)
    path.write_bytes(b"".join([head, first, second, third[:30]]))
    assert sorted(Journal(path, IDENTITY).parts) == [0, 1]


@pytest.mark.model
def test_parts_of_other_rows_are_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr("sea_lens.evaluation.run.PART", 2)
    rows = [{"query": sentence(i, 3), "choices": ["w1", "w2 w3"], "gold": 0} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = sl.Task.read("capability", tmp_path / "rows.jsonl")
    path, later = tmp_path / "journal", replace(task, items=(*task.items[2:], *task.items[:2]))
    sl.evaluate(model, later, journal=path, progress=False)
    noted = path.read_text().splitlines()
    expected = json.loads(noted[0])["evaluation"] | {"data": None}
    written = Journal(tmp_path / "forged", expected)
    for part, line in enumerate(noted[1:]):
        written.add(part, json.loads(line)["content"])
    monkeypatch.setattr("sea_lens.evaluation.journal._same", lambda found, own: True)
    with pytest.raises(sl.FileError, match="holds other rows than part 0"):
        sl.evaluate(model, task, journal=tmp_path / "forged", progress=False)


def test_a_run_that_is_refused_leaves_no_journal(tmp_path):
    Journal(tmp_path / "journal", IDENTITY)
    assert list(tmp_path.iterdir()) == []


def test_results_that_their_items_contradict_are_refused(tmp_path):
    path = tmp_path / "old.json"
    evaluation().save(path)
    # As version 0.1.0 wrote it, whose files have no seal.
    old = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("form", "sha256")}

    def load(content):
        path.write_text(json.dumps(content))
        return sl.Evaluation.load(path)

    assert load(old).scores == evaluation().scores
    for change in (
        {"scores": old["scores"] | {"accuracy": 0.9}},
        {"scores": {}},
        {"items": old["items"][:-1]},
        {"items": [*old["items"][:-1], old["items"][0]]},
        {"items": [item | {"accuracy": 1.0} for item in old["items"]]},
        {"items": [item | {"accuracy": "high"} for item in old["items"]]},
        {"items": [item | {"accuracy": None} for item in old["items"]]},
        {"items": [{"row": i + 1, f"name {i}": 1} for i in range(50)]},
        {"items": []},
        {"items": {"0": 1}},
        {"seed": -1},
        {"provenance": None},
    ):
        with pytest.raises(sl.FileError, match="damaged"):
            load(old | change)


def tuned():
    common = {"feature": "identity", "energy": 0.9, "centre": False, "layers": "all"}
    settings = [
        {**common, "strength": 0.5, "accuracy": 0.5, "kl": 0.01, "allowed": True, "chosen": True},
        {**common, "strength": 1.0, "accuracy": 0.9, "kl": 0.5, "allowed": False, "chosen": False},
    ]
    options = {"layers": "all", "strength": 0.5}
    unedited = {"accuracy": 0.4, "kl": 0.0}
    edit = EDITS["spectral"]()
    return Tuning(pd.DataFrame(settings), "rule", edit, options, unedited, "accuracy", {"kl": 0.1})


def test_a_result_of_tune_comes_back_and_its_choice_is_the_rules(tmp_path):
    found = tuned()
    found.save(tmp_path)
    again = Tuning.load(tmp_path)
    assert again.table.equals(found.table)
    assert (again.options, again.unedited, again.limits) == (found.options, found.unedited, found.limits)
    assert again.edit.digest == found.edit.digest
    for change in ({"chosen": [False, True]}, {"allowed": [True, True]}, {"accuracy": [0.5, None]}, {"kl": [0.2, 0.5]}):
        with pytest.raises(sl.InputError, match="no result of tune"):
            replace(found, table=found.table.assign(**change), limits={"kl": 0.1} if "kl" in change else found.limits,
                    maximise="accuracy" if "accuracy" not in change else "nosuch")  # fmt: skip
    EDITS["spectral, centred"]().save(tmp_path / "edit.safetensors")
    with pytest.raises(sl.FileError, match="not the edit that was chosen"):
        Tuning.load(tmp_path)


def test_results_of_analyses_come_back_from_a_journal_bit_for_bit():
    items = torch.randn(3, 2, dtype=torch.float64)
    details = {"nodes": 4, "exact": True, "errors": [0.1, float("nan")], "empty": torch.zeros(0, 2)}
    one = LayerContributions("path", items, items.sum(1), layers=(0, 2), details=details)
    about = DirectionDescription(0.5, [("a", 0.1)], [("b", -0.1)], [(3, 0.25)])
    label = (0, "+", 1)
    other = DirectionContributions(
        "path",
        items.float(),
        items.sum(1),
        directions=(label, (0, "-", 0)),
        descriptions={label: about},
        basis="net",
        eigenvalues={label: 0.5},
        dimensions={label: 2},
    )
    again: Any = None
    for result in (one, other):
        again = decoded(json.loads(json.dumps(encoded(result))))
        assert type(again) is type(result)
        assert torch.equal(again.item_values, result.item_values)
        assert again.item_values.dtype == result.item_values.dtype
        assert again.labels == result.labels
        assert encoded(again) == encoded(result)
    assert decoded(encoded(other)).descriptions == {label: about}
    with pytest.raises(TypeError):
        encoded(object())
    with pytest.raises((ValueError, KeyError, TypeError)):
        decoded({"object": ["Path", {}]})


# --- Hostile files --------------------------------------------------------------------------------------------------

READERS: dict[str, Any] = {
    "edit": sl.load_edit,
    "spectral edit": sl.SpectralEdit.load,
    "covariance": sl.CrossCovariance.load,
    "evaluation": sl.Evaluation.load,
    "tuning": Tuning.load,
    "journal": lambda path: Journal(path, IDENTITY).add(0, []),
}


@pytest.mark.parametrize("reader", list(READERS))
def test_what_is_no_file_is_refused_at_once(reader, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to pipe").symlink_to(tmp_path / "pipe")
    bound = socket.socket(socket.AF_UNIX)
    place = Path.cwd()
    os.chdir(tmp_path)  # a socket's path is short
    try:
        bound.bind("socket")
    finally:
        os.chdir(place)
        bound.close()
    start = time.monotonic()
    odd = ["pipe", "link to pipe", "socket", "", "x" * 300, "a\0b", "a/b/c", "\ud800"]
    for path in (*(str(tmp_path / name) for name in odd), "/dev/zero", "/dev/stdin"):
        if reader == "journal" and path.endswith("\ud800"):
            continue
        with pytest.raises(sl.FileError):
            READERS[reader](path)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("name", ["deep header", "long header", "huge tensor", "many axes", "deep metadata", "twice"])
def test_hostile_safetensors_are_refused_before_they_cost_anything(name, tmp_path):
    path, deep = tmp_path / "file", b"[" * 3000
    EDITS["mean difference"]().save(path)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])

    def laid_out(text):
        return len(text).to_bytes(8, "little") + text + bytes(64)

    first = next(key for key in header if key.startswith("layers"))
    metadata = header["__metadata__"]
    kind = {"sea_lens.kind": metadata["sea_lens.kind"]}
    content = {
        "deep header": laid_out(deep),
        "long header": (2**40).to_bytes(8, "little") + deep,
        "huge tensor": laid_out(json.dumps(header | {first: header[first] | {"shape": [2**40, 2**40]}}).encode()),
        "many axes": laid_out(json.dumps(header | {first: header[first] | {"shape": [1] * 5000}}).encode()),
        "deep metadata": laid_out(json.dumps({"__metadata__": kind | {"sea_lens.header": deep.decode()}}).encode()),
        "twice": laid_out(b'{"__metadata__": {}, "__metadata__": ' + json.dumps(metadata).encode() + b"}"),
    }[name]
    path.write_bytes(content)
    with pytest.raises(sl.FileError):
        sl.load_edit(path)


def test_the_fuzzer_finds_nothing_in_its_first_inputs():
    ran = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", "--inputs", "1500", "--workers", "1"],
        cwd=PROJECT, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert '"inputs": 1500' in ran.stdout


# --- Writing --------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from sea_lens._support import files
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
files.write_atomically(sys.argv[1], "new")
"""


def test_what_a_killed_write_left_goes_with_the_next_write_of_that_file(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    ran = subprocess.run([sys.executable, "-c", KILLED, path], env=ENVIRONMENT)
    assert ran.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    foreign = [
        tmp_path / ".results.json.swp",
        tmp_path / ".other.json.sea_lens-x",
        tmp_path / ".results.json.sea_lens-x",
    ]
    for one in foreign:
        one.write_text("somebody else's")
    alive = files._temporary(path)
    files.write_atomically(path, "newest")
    assert path.read_text() == "newest"
    assert {*tmp_path.iterdir()} == {path, *foreign, alive[1]}
    os.close(alive[0])
    files.remove_living()
    assert {*tmp_path.iterdir()} == {path, *foreign}


def test_links_devices_and_folders_are_never_written_over(tmp_path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    long, edit = "n" * 256, EDITS["spectral"]()
    for path in (*(tmp_path / name for name in ("link", "dangling", "folder", "pipe", long, "a\0b")), "/dev/null"):
        with pytest.raises(sl.FileError, match=r"cannot (write|hold)"):
            files.write_atomically(path, "x")
        with pytest.raises(sl.FileError, match=r"cannot (write|hold)"):
            edit.save(path)
    assert (tmp_path / "target").read_text() == "precious"
    assert (tmp_path / "link").is_symlink()
    assert Path("/dev/null").is_char_device()
    # As long as names can be, so that no temporary's name is too long.
    edit.save(tmp_path / ("n" * 255))
    assert len(list(tmp_path.iterdir())) == 6


def test_an_output_that_is_an_input_is_refused_by_whatever_name(tmp_path):
    given = tmp_path / "demos.jsonl"
    given.write_text("{}")
    os.link(given, tmp_path / "hard")
    (tmp_path / "sub").mkdir()
    (tmp_path / "again").symlink_to(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    inputs = {"--demonstrations": given, "--model": str(model), "--data": "hf:owner/name", "--edit": None}
    for out in (given, tmp_path / "hard", tmp_path / "sub" / ".." / "demos.jsonl", tmp_path / "again" / "demos.jsonl"):
        with pytest.raises(sl.FileError, match="is what --demonstrations"):
            check_output_file(out, inputs)
    with pytest.raises(sl.FileError, match="is what --model"):
        check_output_file(model / "config.json", inputs)
    check_output_file(tmp_path / "edit.safetensors", inputs)
    assert not (tmp_path / "edit.safetensors").exists()
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(sl.FileError, match=r"results.json is what --contrasts"):
        output_folder(tmp_path, {"--contrasts": tmp_path / "results.json"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "effect.png").symlink_to(given)
    with pytest.raises(sl.FileError, match="it is a link"):
        output_folder(tmp_path / "out")
    for bad in (given, given / "below", tmp_path / ("n" * 300), "a\0b"):
        with pytest.raises(sl.FileError):
            output_folder(bad)


def test_an_errors_text_is_not_torn_by_the_value_of_an_option():
    message = "unknown benchmark 'foo': expected one of truthfulqa, bbq"
    for value in ("e", "one", "bbq", "of", "foo"):
        assert naming_the_option(message, ["--data", value]) == message
    told = naming_the_option("rows.jsonl, row 2: not JSON", ["--data", "rows.jsonl"])
    assert told == "--data rows.jsonl, row 2: not JSON"
    assert naming_the_option("m: no such model", ["--model", "m"]) == "--model m: no such model"


# --- Commands -------------------------------------------------------------------------------------------------------


def heeds_interrupts():
    """In a child: a shell starts what runs in the background with interrupts ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "sea_lens", *map(str, arguments)],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=heeds_interrupts, **options,
    )  # fmt: skip


def test_an_interrupt_leaves_no_timer_that_could_kill_a_slow_end():
    code = """
import contextlib, os, signal, sys
sys.argv = ["sea-lens"]
import sea_lens
from sea_lens._support import interrupts

with contextlib.suppress(KeyboardInterrupt), interrupts.raised():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(10**7))
    finally:
        print(signal.getitimer(signal.ITIMER_REAL)[0] > 0)
print(signal.getitimer(signal.ITIMER_REAL)[0], interrupts.has_come())
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=ENVIRONMENT, capture_output=True, text=True, check=True, preexec_fn=heeds_interrupts,
    )  # fmt: skip
    assert ended.stdout.split() == ["True", "0.0", "True"]


def test_an_interrupt_within_code_that_was_run_from_text_ends_with_the_status_all_the_same(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "__init__.py").write_text("import sea_lens._support.interrupts\n")
    (tmp_path / "part" / "__main__.py").write_text(
        "import contextlib, os, signal, sys\n"
        "from sea_lens._support import interrupts\n"
        "with contextlib.suppress(KeyboardInterrupt), interrupts.raised():\n"
        "    exec('os.kill(os.getpid(), signal.SIGINT); sum(range(10**7))')\n"
        "print(interrupts.has_come())\n"
        "sys.exit(interrupts.STATUS)\n"
    )
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    # What follows the module's name is what tells the package that it is a command.
    line = [sys.executable, "-m", "part", "sea_lens"]
    ended = subprocess.run(
        line, env={**ENVIRONMENT, "PYTHONPATH": path}, capture_output=True, text=True, preexec_fn=heeds_interrupts
    )
    assert (ended.stdout, ended.returncode) == ("True\n", 130)


def test_an_interrupt_is_one_line_from_the_first_import_on(tmp_path):
    demonstrations().to_jsonl(tmp_path / "demos.jsonl")
    arguments = ("fit", "--model", "testbed", "--demonstrations", tmp_path / "demos.jsonl", "--out", tmp_path / "edit")
    start = time.monotonic()
    ended = command(*arguments)
    ended.communicate()
    assert ended.returncode == 0
    lasted = time.monotonic() - start
    (tmp_path / "edit").unlink()
    running = [command(*arguments) for _ in range(2)]
    for place, one in enumerate(running):
        time.sleep(0.25 * lasted * (1 + place))
        one.send_signal(signal.SIGINT)
        _, told = one.communicate(timeout=60)
        if one.returncode != 0:  # it may have been quicker
            assert (told, one.returncode) == (b"sea-lens: interrupted\n", 130)
            assert [path.name for path in tmp_path.iterdir()] in (["demos.jsonl"], ["edit", "demos.jsonl"])


@pytest.mark.parametrize("name", ["mean difference", "LoRA"])
def test_analyses_that_an_edit_does_not_have_are_refused_before_the_model_is_loaded(
    name, tmp_path, monkeypatch, capsys
):
    from sea_lens.cli import main

    EDITS[name]().save(tmp_path / "edit")
    sl.Contrasts([sl.Contrast("w1", " w2", " w3")]).to_jsonl(tmp_path / "contrasts.jsonl")
    monkeypatch.setattr("sea_lens.cli.options.load_model", None)
    given = ["--edit", tmp_path / "edit", "--contrasts", tmp_path / "contrasts.jsonl", "--out", tmp_path / "out"]
    methods = {"mean difference": "directions_path", "LoRA": "layers_only_one,heads_direct"}[name]
    monkeypatch.setattr(sys, "argv", ["sea-lens", "attribute", "--model", "m", *map(str, given), "--methods", methods])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert f"--methods {methods.split(',')[-1]}" in capsys.readouterr().err


@pytest.mark.model
def test_runs_that_are_killed_go_on_and_end_with_the_same_bytes():
    ran = subprocess.run(
        [sys.executable, "timings/kills.py", "--small", "--kills", "2"],
        cwd=PROJECT, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    for line in ran.stdout.strip().splitlines():
        numbers = [int(part.split()[0]) for part in line.split(": ")[1].split(", ")]
        kills, runs, equal, left = numbers
        assert (kills, equal, left) == (2, runs, 0), ran.stdout
    assert len(ran.stdout.strip().splitlines()) == 4


# --- Two processes on one file --------------------------------------------------------------------------------------


def _in_another_process(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, env=ENVIRONMENT
    )


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_a_second_process_cannot_write_a_journal_that_is_being_written(tmp_path):
    path = tmp_path / "run.partial"
    beginning = f"from sea_lens.evaluation.journal import Journal; j = Journal({str(path)!r}, {{'a': 1}}); "
    early = Journal(path, {"a": 1})
    mine = Journal(path, {"a": 1})
    mine.add(0, "mine")
    with pytest.raises(sl.FileError, match="begun by another process"):
        early.add(0, "early")
    told = _in_another_process(beginning)
    assert "FileError" in told.stderr
    assert "being written by another process" in told.stderr
    mine.add(1, "mine")
    # In the same process a run that was interrupted can be begun anew, and the old one is over.
    again = Journal(path, {"a": 1})
    again.add(2, "again")
    with pytest.raises(sl.FileError, match="another process"):
        mine.add(2, "mine")
    del again, mine
    gc.collect()
    assert _in_another_process(beginning + "j.add(3, 'another')").returncode == 0
    assert Journal(path, {"a": 1}).parts == {0: "mine", 1: "mine", 2: "again", 3: "another"}


def test_a_journal_that_was_taken_away_is_not_gone_on_with(tmp_path):
    path = tmp_path / "run.partial"
    journal = Journal(path, {"a": 1})
    journal.add(0, "first")
    path.unlink()
    with pytest.raises(sl.FileError, match="taken away"):
        journal.add(1, "second")
    assert not path.exists()


# --- Arguments ------------------------------------------------------------------------------------------------------


_NO_PATHS = """
import sea_lens as sl
edit = sl.SpectralEdit.load({edit!r})
readers = [sl.load_edit, sl.SpectralEdit.load, sl.LoRA.load, sl.CrossCovariance.load, sl.Evaluation.load]
readers += [sl.Tuning.load, sl.Demonstrations.from_truthfulqa, sl.Contrasts.from_jsonl, sl.load_model, edit.save]
for load in [*readers, lambda path: sl.testbed.load("auto", path)]:
    for path in (None, 3, b"x", ["x"], "a\\0b"):
        try:
            load(path)
        except sl.SeaLensError:
            continue
        raise AssertionError((load, path))
"""


def test_what_is_no_path_is_refused(tmp_path):
    EDITS["spectral"]().save(tmp_path / "edit")
    # In a process of its own, where no types are checked.
    ended = _in_another_process(_NO_PATHS.format(edit=str(tmp_path / "edit")))
    assert (ended.stderr, ended.returncode) == ("", 0)


def test_a_damaged_world_of_a_testbed_is_refused(tmp_path):
    for content in ("", "[]", '{"seed": 0}', '{"seed": 0, "questions": [3]}'):
        (tmp_path / "world.json").write_text(content)
        with pytest.raises(sl.FileError, match=r"world\.json"):
            sl.testbed.load(path=tmp_path)


def test_how_to_apply_an_edit_is_warned_of_where_there_is_none(model, tmp_path):
    rows = [{"query": "w1 w2 w3", "choices": ["w1", "w2"], "gold": 0}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    task = sl.Task.read("capability", tmp_path / "rows.json", prompt="query")
    options: list[dict[str, Any]] = [{"layers": "all"}, {"strength": 0.0}, {"combine": ""}, {"positions": "all"}]
    for given in options:
        (name,) = given
        for run in (
            lambda given=given: sl.generate(model, "w1 w2 w3", **given),
            lambda given=given: sl.evaluate(model, task, progress=False, **given),
            lambda given=given: sl.harness_model(model, **given),
        ):
            with pytest.warns(sl.SeaLensWarning, match=f"{name} without an edit"):
                run()


def test_a_folder_that_was_made_for_nothing_goes_again_and_no_other_does(tmp_path):
    (tmp_path / "own").mkdir()
    arguments = ("tune", "--model", "testbed", "--demonstrations", tmp_path / "none.jsonl", "--benchmark", "bbq")
    for out in ("new/deep", "own"):
        ended = command(*arguments, "--data", "x", "--maximise", "accuracy", "--out", tmp_path / out)
        _, told = ended.communicate()
        assert (ended.returncode, len(told.splitlines())) == (2, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


DATA = PROJECT.parent / "shared" / "data"


@pytest.mark.parametrize("name", ["truthfulqa", "bbq", "crows_pairs", "gsm8k", "capability", "perplexity"])
def test_the_names_of_scores_are_known_before_a_model_is_asked(name, model, tmp_path):
    rows: dict[str, Any] = {
        "capability": [{"query": "w1 w2 w3", "choices": ["w1", "w2"], "gold": 0}],
        "perplexity": ["w1 w2 w3"],
        "gsm8k": [{"question": "w1 w2 w3", "answer": "w1 #### 3"}],
        "truthfulqa": [{"question": "w1 w2 w3", "mc1_targets": {"w1": 1, "w2": 0}, "mc2_targets": {"w1": 1, "w2": 0}}],
    }
    if name in rows:
        path = tmp_path / "rows.json"
        path.write_text(json.dumps(rows[name]))
    else:
        found = sorted(path for path in DATA.rglob("*") if name.split("_")[0] in str(path.relative_to(DATA)).lower())
        files_of = [path for path in found if path.suffix in (".csv", ".jsonl")]
        if not files_of:
            pytest.skip("its file is not here")
        path = files_of[0]
    task = sl.Task.read(name, path, limit=3)
    options: dict[str, Any] = {"max_new_tokens": 2, "progress": False}
    assert task.benchmark.score_names(task.items) == list(sl.evaluate(model, task, **options).scores)


def test_a_grid_with_a_value_twice_and_unknown_scores_are_refused_before_anything_is_read(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([{"query": "w1 w2 w3", "choices": ["w1", "w2"], "gold": 0}]))
    task = sl.Task.read("capability", tmp_path / "rows.json", prompt="query")
    bed = sl.testbed.load()
    with bed.model.hooks(fwd_hooks=[("hook_embed", lambda value, hook: pytest.fail("the model ran"))]):
        refused: list[dict[str, Any]] = [{"maximise": "mc2"}, {"maximise": "accuracy", "budget": {"kl": 1}}]
        for options in refused:
            with pytest.raises(sl.InputError, match=r"unknown scores .* accuracy, accuracy_normalised"):
                sl.tune(bed.model, demonstrations(), task, **options)
    grids: list[dict[str, Any]] = [{"strengths": [1, 1.0]}, {"energies": [0.9, 0.9]}, {"features": ["tanh", "tanh"]}]
    for grid in grids:
        with pytest.raises(sl.InputError, match="is given twice"):
            sl.tune(bed.model, demonstrations(), task, maximise="accuracy", **grid)


@pytest.mark.parametrize(("arguments", "told"), [
    (["effect", "--edit", "EDIT", "--contrasts", "ROWS", "--layers", "9" * 5000], "unknown layer choice '999"),
    (["effect", "--edit", "EDIT", "--contrasts", "ROWS", "--layers", "0,,1"], "unknown layer choice '0,,1'"),
    (["effect", "--edit", "EDIT", "--contrasts", "ROWS", "--batch-size", "9" * 30], "'--batch-size'"),
    (["effect", "--edit", "", "--contrasts", "ROWS"], "--edit: the name is empty"),
    (["attribute", "--edit", "EDIT", "--contrasts", "ROWS", "--out="], "--out: the name is empty"),
    (["attribute", "--edit", "EDIT", "--contrasts", "ROWS", "--out", "o", "--control-draws", "3"], "--demonstrations"),
    (["evaluate", "--benchmark", "capability", "--data", "ROWS", "--out", "."], "--out . is a folder"),
    (["evaluate", "--benchmark", "capability", "--data", "ITEMS", "--out", "o", "--layers", ""], "--layers: say how"),
    (["fit", "--demonstrations", "ROWS", "--out", "o", "--rank", "2", "--energy", "0.9"], "--rank and --energy"),
    (["generate", "--prompt", "w1", "--stop", ""], "stop ['']"),
    (["tune", "--demonstrations", "DEMOS", "--benchmark", "capability", "--data", "ITEMS", "--out", "o",
      "--maximise", "mc2"], "unknown scores ['mc2']"),
    (["tune", "--demonstrations", "DEMOS", "--benchmark", "capability", "--data", "ITEMS", "--out", "o",
      "--maximise", "accuracy", "--site", "x"], "unknown site 'x'"),
])  # fmt: skip
def test_wrong_options_are_refused_in_one_line_before_the_model_is_loaded(
    arguments, told, tmp_path, monkeypatch, capsys
):
    from sea_lens.cli import main

    monkeypatch.chdir(tmp_path)
    EDITS["spectral"]().save("EDIT")
    demonstrations().to_jsonl("DEMOS")
    sl.Contrasts([sl.Contrast("w1", " w2", " w3")]).to_jsonl("ROWS")
    Path("ITEMS").write_text(json.dumps({"query": "w1 w2 w3", "choices": ["w1", "w2"], "gold": 0}))
    monkeypatch.setattr("sea_lens.cli.options.load_model", None)
    monkeypatch.setattr(sys, "argv", ["sea-lens", arguments[0], "--model", "m", *arguments[1:]])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert (stopped.value.code, said.count("\n")) == (2, 1)
    assert told in said
    assert len(said) < 600


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_what_cannot_be_printed_is_said_in_one_line_and_closed_streams_are_none(tmp_path):
    EDITS["spectral"]().save(tmp_path / "edit")
    run = f"{sys.executable} -m sea_lens inspect {tmp_path / 'edit'}"
    for redirected, status, told in (
        (">/dev/full", 1, "sea-lens: cannot write to the standard output: No space left on device\n"),
        (">&-", 0, ""),
    ):
        ended = subprocess.run(
            f"{run} {redirected}", shell=True, capture_output=True, text=True, env=ENVIRONMENT, check=False
        )
        assert (ended.returncode, ended.stderr) == (status, told)


@pytest.mark.parametrize("processing", [-1, True, [None], {}, "x"])
def test_an_edit_of_a_model_that_was_processed_in_no_way_that_is_known_cannot_be_made(processing):
    edit = EDITS["spectral"]()
    model = {**edit.provenance.get("model", {}), "processing": processing}
    with pytest.raises(sl.InputError, match="its model has processing"):
        replace(edit, provenance={**edit.provenance, "model": model})


@pytest.mark.parametrize("said", [None, 3, "x", [None], [3]])
def test_what_an_edit_says_of_itself_is_shown_whatever_its_provenance_says(said):
    from sea_lens.cli.attribution import about_edit

    edit = EDITS["mean difference"]()
    strange = replace(edit, provenance={**edit.provenance, "demonstrations": said, "chosen_on": said})
    assert about_edit(strange)["provenance"]["demonstrations"] == said
