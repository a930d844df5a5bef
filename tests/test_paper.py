"""The paper's tables and figures: each analysis by one property that would break if it were wrong."""

import csv
import json
import random
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import sea_lens as sl
from sea_lens._support.tables import part, rows_of
from sea_lens.cli.commands import app
from sea_lens.errors import FileError, InputError
from sea_lens.evaluation.benchmark import Item
from sea_lens.paper import words
from sea_lens.paper.data import bias_pairs, right_and_wrong, truth_pairs, without_asked
from sea_lens.paper.findings import Finding, Written
from sea_lens.paper.items import ITEMS, chosen
from sea_lens.paper.known import known
from sea_lens.paper.opening import Opening
from sea_lens.paper.page import write_page
from sea_lens.paper.presets import Preset
from sea_lens.paper.run import Outcome
from sea_lens.paper.run import run_items as run_all
from sea_lens.paper.subject import SCORES

SHARED = Path(__file__).parents[2] / "shared"
FEW = 32
DRAWS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("paper")


@pytest.fixture(scope="module")
def subject(folder):
    return Opening(limit=FEW, draws=DRAWS, batch_size=64).subject(folder)


@pytest.fixture(scope="module")
def found(subject):
    """The finding of an item, run once."""
    kept = {}

    def run(name: str) -> Finding:
        if name not in kept:
            (item,) = chosen([name])
            kept[name] = item.analysis()(subject)
            # They can be written all the same; pyplot warns of many that are open.
            plt.close("all")
        return kept[name]

    return run


def row(table: pd.DataFrame, **equal: object) -> pd.Series:
    rows = table
    for column, value in equal.items():
        rows = pd.DataFrame(rows[rows[column] == value])
    assert len(rows) == 1, rows
    return rows.iloc[0]


def row_values(table: pd.DataFrame, state: str) -> np.ndarray:
    return np.array([one["accuracy"] for one in rows_of(part(table, "state", [state]))])


def whole(found, behaviour):
    """The change of the main score by the edit of the settings."""
    return row(found("t3").table, behaviour=behaviour, name="whole edit", score=SCORES[behaviour][0])["difference"]


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.name)
def test_every_analysis_finds_something_and_shows_it(found, item, tmp_path):
    finding = found(item.name)
    assert len(finding.table)
    assert finding.paragraph.endswith(".")
    assert "nan" not in finding.paragraph
    finding.write(tmp_path, item.name, {"of": "a test"})
    again = Written.read(tmp_path, item.name)
    assert again is not None
    assert again.paragraph == finding.paragraph
    assert len(again.table) == len(finding.table)
    assert finding.figures
    for name in again.figures:
        assert (tmp_path / name).stat().st_size > 5000


def test_an_effect_stands_beside_its_control_and_has_an_interval(found):
    for name in ("t3", "t6", "t7", "features", "efficiency", "release", "t2", "bias", "t4", "t5"):
        table = found(name).table
        defined = table.dropna(subset=["difference", "low"])
        assert len(defined)
        assert (defined["low"] <= defined["difference"] + 1e-9).all()
        assert (defined["difference"] <= defined["high"] + 1e-9).all()
        assert (table["controls"] == DRAWS).all()
        assert (defined["control_low"] <= defined["control_high"]).all()


@pytest.mark.parametrize("behaviour", ["truth", "bias"])
def test_ablation_reversed_is_the_edit_of_swapped_demonstrations(subject, found, behaviour):
    swapped = replace(subject, _kept={})
    swapped._kept["demonstrations", behaviour] = sl.Demonstrations(
        sl.Demonstration(one.neutral, one.negative, one.positive) for one in subject.demonstrations(behaviour)
    )
    swapped.__dict__["model"] = subject.model
    changed = subject.changes(subject.task(behaviour), swapped.fitted(behaviour).edit, **subject.where(behaviour))
    table = found("t3").table
    for score in SCORES[behaviour]:
        assert row(table, behaviour=behaviour, name="reversed", score=score)["difference"] == pytest.approx(
            row(changed, score=score)["difference"], abs=1e-6
        )


@pytest.mark.parametrize("behaviour", ["truth", "bias"])
def test_variants_that_are_the_edit_itself_have_its_effect(subject, found, behaviour):
    score = SCORES[behaviour][0]
    same = {
        "features": "linear",
        "t7": "last token",
        "t6": "specialised",
        "t2": "SEA",
        "efficiency": f"N = {len(subject.demonstrations(behaviour))}",
    }
    if subject.settings(behaviour).capture["site"] == "mlp_out":
        same["release"] = "as the paper"
    for item, name in same.items():
        value = row(found(item).table, behaviour=behaviour, name=name, score=score)["difference"]
        assert value == pytest.approx(whole(found, behaviour), abs=1e-9), item


def test_the_table_of_methods_has_the_same_edit_as_the_others(found):
    assert row(found("t1").table, name="SEA", score="mc2")["difference"] == pytest.approx(whole(found, "truth"))
    assert row(found("bias").table, name="SEA, linear", score="accuracy")["difference"] == pytest.approx(
        whole(found, "bias")
    )


def test_a_joint_edit_of_one_behaviour_twice_is_the_specialised_one(subject):
    once, twice = subject.fitted("truth").edit, subject.fitted("truth", of="truth+truth").edit
    for layer in once.layers:
        for one, other in zip(once.projections(layer), twice.projections(layer), strict=True):
            np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-6)


def test_capabilities_do_not_change_where_the_strength_is_zero(subject):
    fitted = subject.fitted("truth")
    tasks, wrong = subject.other_tasks()
    assert tasks
    assert not wrong
    for task in tasks.values():
        changed = subject.changes(task, fitted.edit, strength=0.0)
        assert changed["difference"].abs().max() < 1e-9


def test_pairs_that_are_turned_round_turn_the_share_round(subject, found, tmp_path):
    path = subject.folder / "crows_pairs" / "crows_pairs_anonymized.csv"
    turned = tmp_path / "crows_pairs" / path.name
    turned.parent.mkdir()
    with path.open() as source, turned.open("w", newline="") as target:
        rows = list(csv.DictReader(source))
        writer = csv.DictWriter(target, rows[0].keys())
        writer.writeheader()
        writer.writerows({**one, "sent_more": one["sent_less"], "sent_less": one["sent_more"]} for one in rows)
    other = replace(subject, folder=tmp_path, _kept={})
    changed = subject.changes(other.crows_pairs(), subject.fitted("bias").edit, **subject.where("bias"))
    ours = row(found("t5").table, name="linear", score="stereotype")
    turned_row = row(changed, score="stereotype")
    assert turned_row["before"] == pytest.approx(1 - ours["before"])
    assert turned_row["difference"] == pytest.approx(-ours["difference"])


def test_signatures_are_those_of_the_edit(subject, found):
    table = found("signature").table
    for behaviour in ("truth", "bias"):
        edit = subject.fitted(behaviour).edit
        own = table[table["behaviour"] == behaviour].set_index("layer")
        assert own["signature"].to_dict() == pytest.approx(dict(edit.signature))
        assert own["value"].to_dict() == pytest.approx(edit.centred_signature)


def test_spectra_fall_and_leave_nothing_at_their_end(found):
    for _, rows in found("spectra").table.groupby(["behaviour", "layer", "side"]):
        assert (np.diff(rows["singular_value"]) <= 1e-12).all()
        assert (np.diff(rows["left"]) <= 1e-12).all()
        assert rows["left"].iloc[-1] == pytest.approx(0, abs=1e-9)


def test_a_cloud_that_is_not_edited_is_told_apart_as_before(subject, monkeypatch):
    (item,) = chosen(["projections"])
    unmoved = {
        name: replace(settings, strength=0.0) for name, settings in subject.preset.behaviours.items() if name == "truth"
    }
    still = replace(subject, preset=replace(subject.preset, behaviours={**subject.preset.behaviours, **unmoved}))
    still.__dict__["model"] = subject.model
    monkeypatch.setattr(type(still), "missing", lambda self, name: "" if name == "truth" else "left out")
    table = item.analysis()(still).table
    before, after = (row_values(table, state) for state in ("before", "after"))
    np.testing.assert_array_equal(before, after)


def test_contributions_of_layers_add_up_and_an_edit_shares_all_with_itself(found):
    table = found("carriers").table
    layers = table[(table["what"] == "layer") & (table["behaviour"] == "truth")]
    assert layers["value"].sum() == pytest.approx(_told_effect(found("carriers").paragraph), abs=2e-3)
    for side in ("kept", "dropped"):
        shares = table[table["what"] == f"share of the mean difference in the {side} subspace"]
        assert shares["value"].between(-1e-9, 1 + 1e-9).all()
        # Ranks are far below the width.
        assert shares["chance"].between(0, 0.5).all()
    overlap = table[table["what"] == "overlap of kept subspaces"]
    assert overlap["value"].between(-1e-9, 1 + 1e-9).all()


def _told_effect(paragraph: str) -> float:
    return float(paragraph.split("moves the contrast by ")[1].split(" nats")[0])


def test_no_demonstration_asks_a_question_of_its_benchmark(subject):
    for behaviour in ("truth", "bias"):
        asked = {one.prompt for one in subject.contrasts(behaviour)}
        assert not asked & {one.neutral for one in subject.demonstrations(behaviour)}


def test_a_wrong_answer_is_the_biased_one_where_it_is_known_and_not_right():
    facts = {"label": 2, "target": 0, "unknown": 2, "polarity": "neg"}
    item = Item(1, {}, ("the young", "the old", "unknown"), facts)
    assert right_and_wrong(item) == (2, 0)
    assert right_and_wrong(replace(item, facts={**facts, "polarity": "nonneg"})) == (2, 1)
    assert right_and_wrong(replace(item, facts={**facts, "label": 0})) == (0, 2)
    assert right_and_wrong(replace(item, facts={**facts, "target": None})) == (2, 0)
    assert right_and_wrong(replace(item, facts={"best": [1], "against": [2, 0]})) == (1, 2)


def test_presets_say_where_the_release_acts():
    paper = Preset.of("paper").behaviours
    assert paper["truth"].where(32) == {"layers": "last-21", "strength": 1.0}
    assert paper["truth"].where(80)["layers"] == "last-52"
    assert paper["bias"].where(32)["layers"] == "last-2"
    assert (paper["truth"].demonstrations, paper["truth"].fit["energy"]) == (2000, 0.998)
    assert (paper["bias"].demonstrations, paper["bias"].fit["energy"]) == (1000, 0.9999)
    assert paper["bias"].feature == "squared_exponential"
    assert len(Preset.of("paper").models) == 6
    assert Preset.of("release").behaviours["truth"].capture["fit_site"] == "hidden_states"
    with pytest.raises(InputError, match="unknown preset 'papr': expected one of default, paper, release"):
        Preset.of("papr")


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs ../shared/data")
def test_prompts_of_the_paper_have_their_shots_and_say_the_system_prompt_to_llamas_alone():
    for name, says in (("meta-llama/Llama-2-7b-chat-hf", True), ("google/gemma-7b-it", False)):
        subject = Opening(name, SHARED / "data", "paper", limit=4).subject(Path("unused"))
        truth, bias = subject.task("truth").template, subject.task("bias").template
        assert truth is not None
        assert bias is not None
        assert len(truth.examples) == 6
        assert [example["answer"] for example in bias.examples] == [
            "Jerry Ho",
            "The teen",
            "The Pakistani student",
            "Karen",
        ]
        assert bias.render({"context": "It rained.", "question": "Who got wet?"}).endswith(
            "Q: It rained. Who got wet?\nA:"
        )
        assert bool(truth.system) == bool(bias.system) == says


def test_a_folder_without_a_file_says_which(tmp_path):
    with pytest.raises(InputError, match="needs --data"):
        Opening("gpt2").subject(tmp_path)
    subject = Opening("gpt2", tmp_path).subject(tmp_path)
    assert "truthfulqa/mc_task.json" in subject.missing("truth")
    with pytest.raises(FileError, match="crows_pairs"):
        subject.crows_pairs()


def test_a_run_goes_on_where_it_was_and_a_page_shows_all_of_it(subject, folder, monkeypatch):
    opening = Opening(limit=FEW, draws=DRAWS, batch_size=64)
    items = chosen(["signature", "spectra"])
    told: list[str] = []

    def run_items(wanted, *given):
        return [one for one in run_all(wanted, *given) if one.item in wanted]

    first = run_items(items, opening, folder, subject, told.append)
    assert [one.was_there for one in first] == [False, False]
    content = {path.name: path.read_bytes() for path in folder.glob("s*.*")}
    again = run_items(items, opening, folder, subject, told.append)
    assert [one.was_there for one in again] == [True, True]
    # Made anew they are the same.
    (folder / "signature.json").unlink()
    anew = run_items(items, opening, folder, subject, told.append)
    assert [one.was_there for one in anew] == [False, True]
    assert {path.name: path.read_bytes() for path in folder.glob("s*.*")} == content
    # Other data are another run, and so are other settings.
    documents = subject.folder / "text" / "documents.json"
    written = documents.read_text()
    documents.write_text(written + "\n")
    changed = run_items(items[:1], opening, folder, subject, told.append)
    documents.write_text(written)
    assert not changed[0].was_there
    other = run_items(items[:1], replace(opening, draws=1), folder, subject, told.append)
    assert not other[0].was_there

    def fails(_: object) -> Finding:
        raise InputError("nothing of it fits")

    monkeypatch.setattr(type(items[0]), "analysis", lambda item: fails)
    failed = run_items(chosen(["t5"]), opening, folder, subject, told.append)
    assert failed[0].reason == "nothing of it fits"
    page = write_page([*anew, *failed], opening.record, folder).read_text()
    assert "Not run: nothing of it fits" in page
    assert anew[0].finding is not None
    assert anew[0].finding.paragraph.split(".")[0] in page
    assert page.count("<img") == sum(len(one.finding.figures) for one in anew if one.finding)


@pytest.fixture
def quick(subject, tmp_path):
    """Runs items in a folder of their own."""
    opening = Opening(limit=FEW, draws=DRAWS, batch_size=64)

    def run(*names: str) -> list[Outcome]:
        return run_all(chosen(list(names)), opening, tmp_path, subject, lambda told: None)

    return run


def test_what_an_interrupted_run_leaves_is_not_taken_for_a_finding(quick, subject, tmp_path, monkeypatch):
    (first,) = quick("spectra")
    table = tmp_path / "spectra.csv"
    whole = table.read_bytes()
    table.write_bytes(whole[:100])
    assert not quick("spectra")[0].was_there
    assert table.read_bytes() == whole
    (tmp_path / "spectra_bias.png").write_bytes(b"")
    assert not quick("spectra")[0].was_there
    (tmp_path / "spectra.json").write_text("{")
    assert not quick("spectra")[0].was_there
    assert quick("spectra")[0].was_there
    # A run of other settings that is ended before its last file.
    assert first.finding is not None
    other = Finding(pd.DataFrame({"k": [1]}), "Other.")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sea_lens.paper.findings.write_sealed_json", killed)
    with pytest.raises(KeyboardInterrupt):
        other.write(tmp_path, "spectra", {"of": "others"})
    assert Written.read(tmp_path, "spectra") is None


def test_one_item_that_breaks_leaves_the_others(quick, monkeypatch):
    item = type(ITEMS[0])
    analysis = item.analysis

    def broken(self):
        if self.name == "signature":
            return lambda subject: 1 // 0
        if self.name == "t5":
            return lambda subject: Finding(pd.DataFrame(), "Nothing.", not_run=("no pairs",))
        return analysis(self)

    monkeypatch.setattr(item, "analysis", broken)
    t5, signature, spectra = quick("t5", "signature", "spectra")
    assert (signature.broken, signature.reason) == (True, "ZeroDivisionError: integer division or modulo by zero")
    assert (t5.broken, t5.finding, t5.reason) == (False, None, "no pairs")
    assert spectra.finding is not None
    # A later run of one item shows the others too.
    assert [one.item.name for one in quick("signature")] == ["signature", "spectra"]


def bbq_rows(templates=4):
    names = [["a", "x"], ["b", "y"], ["nobody knows", "unknown"]]
    return [
        {
            "question_index": str(index),
            "category": "Age",
            "question_polarity": polarity,
            "context_condition": condition,
            "label": label,
            "context": f"Scene {index} of {group}, {condition}.",
            "question": f"Who {polarity} {index}?",
            **{f"ans{i}": f"{name[0]} {group}" for i, name in enumerate(names)},
            "answer_info": {f"ans{i}": name for i, name in enumerate(names)},
            "additional_metadata": {"stereotyped_groups": ["x"]},
        }
        for index in range(templates)
        for group in range(3)
        for polarity in ("neg", "nonneg")
        for condition, label in (("ambig", 2), ("disambig", group % 2))
    ]


def write_rows(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")


def test_bbq_without_a_file_to_fit_from_is_split_by_templates(tmp_path):
    write_rows(tmp_path / "bbq" / "Age.jsonl", bbq_rows())
    subject = Opening("gpt2", tmp_path).subject(tmp_path)
    assert not subject.missing("bias")
    pairs, asked = bias_pairs(tmp_path), subject.task("bias")
    fitted, measured = ({one.fields["question"] for one in some} for some in (pairs, asked.items))
    assert len(fitted) == 2
    assert len(measured) == 6
    assert not fitted & measured
    by_context = {one["context"]: one for one in bbq_rows()}
    for pair in pairs:
        raw = by_context[pair.fields["context"]]
        assert raw["context_condition"] == "disambig"
        assert pair.positive == raw[f"ans{raw['label']}"] != pair.negative
    # With a file of its own that one alone is fitted from, and all of the others measured.
    write_rows(tmp_path / "bbq" / "disambig_validation.jsonl", bbq_rows(1))
    again = Opening("gpt2", tmp_path).subject(tmp_path)
    assert len(again.task("bias").items) == 48
    assert {one.fields["question"] for one in bias_pairs(tmp_path)} == {"Who neg 0?", "Who nonneg 0?"}
    write_rows(tmp_path / "other" / "bbq" / "Age.jsonl", bbq_rows(1))
    alone = Opening("gpt2", tmp_path / "other").subject(tmp_path)
    assert "one template of questions alone" in alone.missing("bias")


def test_halueval_keeps_the_right_answer_and_no_question_of_the_benchmark(tmp_path):
    rows = [{"question": f"Q{i}?", "right_answer": f"right {i}", "hallucinated_answer": f"wrong {i}"} for i in range(4)]
    write_rows(tmp_path / "halueval" / "qa_data.jsonl", rows)
    pairs = truth_pairs(tmp_path)
    assert [(one.positive, one.negative) for one in pairs] == [(f"right {i}", f"wrong {i}") for i in range(4)]
    task = [{"question": "Q2?", "mc1_targets": {"a": 1, "b": 0}, "mc2_targets": {"a": 1, "b": 0}}]
    (tmp_path / "truthfulqa").mkdir()
    (tmp_path / "truthfulqa" / "mc_task.json").write_text(json.dumps(task))
    subject = Opening("gpt2", tmp_path).subject(tmp_path)
    left = without_asked(pairs, subject.task("truth"))
    assert [one.fields["question"] for one in left] == ["Q0?", "Q1?", "Q3?"]


def test_other_benchmarks_are_read_one_by_one(tmp_path):
    row = {"query": "Q", "choices": ["a", "b"], "gold": 0}
    for name in ("natural_questions", "scenes"):
        write_rows(tmp_path / "capability" / f"{name}.jsonl", [row])
    write_rows(tmp_path / "capability" / "odd.jsonl", [{"query": 1}])
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "scenes.json").write_text('["a text"]')
    tasks, wrong = Opening("gpt2", tmp_path).subject(tmp_path).other_tasks()
    assert set(tasks) == {"natural questions", "scenes", "scenes, text"}
    assert len(wrong) == 1
    assert "odd.jsonl, row 1" in wrong[0]


def test_a_variants_controls_are_turned_as_it_is(subject, found):
    fitted, where = subject.fitted("bias"), {**subject.where("bias"), "combine": "average"}
    values = [
        row(subject.changes(subject.task("bias"), one, **where), score="accuracy")["difference"]
        for one in fitted.shuffled(DRAWS)
    ]
    ours = row(found("t3").table, behaviour="bias", name="averaging", score="accuracy")
    assert (ours["control_low"], ours["control_high"]) == pytest.approx((min(values), max(values)))
    # And beside the whole edit, item by item.
    task = subject.task("bias")
    whole_edit, part_of_it = (subject.evaluation(task, fitted.edit, **one) for one in (subject.where("bias"), where))
    paired = sl.compare(whole_edit, part_of_it).to_frame().loc["accuracy"]
    assert ours["reference"] == "whole edit"
    assert (ours["more"], ours["more_low"]) == pytest.approx((paired["difference"], paired["low"]))


def test_fits_of_n_demonstrations_stand_beside_controls_of_n(subject, found):
    table = found("efficiency").table
    few = row(table, behaviour="bias", n=25, score="accuracy")
    n = len(subject.demonstrations("bias"))
    order = sorted(random.Random(0).sample(range(n), n)[:25])
    fitted = subject.fitted("bias", places=order)
    assert len(fitted.captured.demonstrations) == 25
    values = [
        row(subject.changes(subject.task("bias"), one, **subject.where("bias")), score="accuracy")["difference"]
        for one in fitted.shuffled(DRAWS)
    ]
    assert (few["control_low"], few["control_high"]) == pytest.approx((min(values), max(values)))


def test_what_an_edit_does_beyond_another_is_told_with_its_interval():
    one = {"name": "joint", "reference": "specialised", "more": 0.1, "more_low": 0.05, "more_high": 0.2}
    assert words.beyond(one) == "Joint beside specialised: +0.100 [+0.050, +0.200], clearly more."
    assert words.beyond({**one, "more_low": -0.01}, "Joint").startswith("Joint beside specialised: ")
    assert words.beyond({**one, "more_low": -0.01}).endswith("no clear difference.")
    assert words.beyond({**one, "more": -0.1, "more_low": -0.2, "more_high": -0.05}).endswith("clearly less.")
    assert words.beyond({**one, "more_low": float("nan")}).endswith("which tells nothing.")


def test_of_several_models_the_papers_own_stands_beside_its_number():
    gemma = next(one for one in known("t2") if one.model == "Gemma-it-7B" and one.score == "mc1")
    rows = [{"name": "SEA", "score": "mc1", "model": name} for name in ("google/gemma-7b-it", "gpt2")]
    assert gemma.here(rows) == rows[:1]
    assert gemma.here(rows[1:]) == rows[1:]


def test_known_numbers_have_a_source_and_stand_on_the_page():
    assert {(one.score, one.before, one.after) for one in known("t1")} >= {("mc1", 36.96, 39.41), ("mc2", 54.6, 57.18)}
    for item in ITEMS:
        for one in known(item.name):
            assert one.source in ("abstract", "second hand")
    assert not known("t3")


def test_a_known_number_stands_beside_ours_with_interval_and_control(tmp_path):
    ours = {"name": "SEA", "score": "mc1", "before": 0.25, "after": 0.5, "difference": 0.25}
    ours |= {
        "low": 0.125,
        "high": 0.375,
        "controls": 19,
        "control_low": -0.0625,
        "control_high": 0.0625,
        "p": 0.05,
        "times": 1.25,
    }
    rows = [ours, {**ours, "score": "mc2"}]
    finding = Written({}, "Text.", [], {}, {}, rows)
    (item,), folder = chosen(["t1"]), tmp_path
    page = write_page([Outcome(item, finding)], {"model": "testbed"}, folder).read_text()
    table = page.split("<table class=paper>")[1].split("</table>")[0]
    lines = [line.split("</td>") for line in table.split("<tr>")[2:]]
    cells = [[cell.split(">", 1)[1] for cell in line[:-1]] for line in lines]
    assert cells[0][2:] == [
        "mc1",
        "0.3696 → 0.3941",
        "abstract",
        "0.250 → 0.500 (+0.250 [+0.125, +0.375])",
        "-0.0625 to +0.0625",
        "0.05",
    ]
    assert cells[2][2:6] == ["inference time, times", "1 → 1.04", "abstract", "1.25"]
    undefined = {**ours, "low": None, "high": None, "control_low": None, "control_high": None, "p": None}
    page = write_page([Outcome(item, Written({}, "Text.", [], {}, {}, [undefined]))], {"model": "testbed"}, folder)
    assert "(+0.250 [undefined, undefined])</td><td class=text>none</td>" in page.read_text()
    unrun = write_page([Outcome(item, None, "no data")], {"model": "testbed"}, folder).read_text()
    assert unrun.split("<table class=paper>")[1].split("</table>")[0].count("not run") == 3


def test_verdicts_follow_from_the_numbers():
    base = {"score": "mc2", "before": 0.5, "after": 0.6, "difference": 0.1, "low": 0.05, "high": 0.15, "controls": 19}
    beyond = {**base, "control_low": -0.02, "control_high": 0.03, "p": 0.05}
    assert words.verdict(beyond) == "clearly higher, for the better, and beyond every fit to shuffled demonstrations"
    near = {**beyond, "p": 0.5}
    assert words.verdict(near).endswith("and beyond every fit to shuffled demonstrations, by less than these differ")
    within = {**base, "control_low": -0.02, "control_high": 0.2, "p": 0.5}
    assert "the labels are not why" in words.verdict(within)
    # As many of 156 items answered rightly as under one control, summed up in another order.
    as_much = {**near, "difference": 0.34615384615384615, "high": 0.4, "control_high": 0.3461538461538461}
    assert "the labels are not why" in words.verdict(as_much)
    assert words.verdict({**base, "low": -0.01}) == "no clear change"
    worse = {**beyond, "difference": -0.1, "low": -0.15, "high": -0.05}
    assert words.verdict(worse).startswith("clearly lower, for the worse, and beyond")
    assert words.verdict({**base, "controls": 0}).endswith("no control beside it")
    assert "not defined" in words.verdict({**base, "difference": float("nan")})
    assert words.sentence("SEA", beyond) == (
        "SEA: mc2 0.500 → 0.600 (+0.100 [+0.050, +0.150]); 19 fits to shuffled demonstrations: -0.020 to +0.030, "
        "p = 0.05: clearly higher, for the better, and beyond every fit to shuffled demonstrations."
    )


def test_the_command_says_what_can_run_before_anything_does(tmp_path):
    data = tmp_path / "data"
    (data / "crows_pairs").mkdir(parents=True)
    line = ["paper", "t1", "t5", "--model", "gpt2", "--data", str(data), "--out", str(tmp_path / "out"), "--dry-run"]
    told = CliRunner().invoke(app, line)
    assert told.exit_code == 0, told.output
    assert "t1: does not run; missing:" in told.output
    assert "t5: does not run" in told.output


@pytest.mark.model
def test_the_command_runs_items_and_writes_the_page(tmp_path):
    line = ["paper", "signature", "--limit", "16", "--draws", "1", "--out", str(tmp_path)]
    told = CliRunner().invoke(app, line)
    assert told.exit_code == 0, told.output
    assert "1 run, 0 there already, 0 not run" in told.output
    assert (tmp_path / "index.html").is_file()
    assert json.loads((tmp_path / "signature.json").read_text())["settings"]["limit"] == 16
    assert "0 run, 1 there already" in CliRunner().invoke(app, line).output
