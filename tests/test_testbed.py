import itertools
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

import sea_lens as sl
from sea_lens.cli import demo_report
from sea_lens.measure.effects import effect_between
from sea_lens.measure.scorer import contrast_scorer, contrast_values
from sea_lens.testbed import choosing, train
from sea_lens.testbed.answers import SHOWN_EVERY, answer_counts, shown_answers
from sea_lens.testbed.bed import CHOSEN, PATH
from sea_lens.testbed.behaviours import BEHAVIOURS
from sea_lens.testbed.corpus import PEOPLES_SHARE, documents
from sea_lens.testbed.demo import RANDOM_DRAWS, run_demo
from sea_lens.testbed.peoples import FAIR_SOURCES, PREJUDICED_SOURCES, Peoples
from sea_lens.testbed.world import NAMES, QUESTIONS_PER_PAIR, RELIABLE_SOURCES, UNRELIABLE_SOURCES, World

# Controls of the demo, fewer than it has itself.
FEW_DRAWS = 3


@pytest.fixture(scope="module")
def bed():
    return sl.testbed.load()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_design_is_balanced(seed):
    world = World.generate(seed)
    pairs = set(itertools.permutations(NAMES, 2))
    assert len({(question.relation, question.land) for question in world.questions}) == len(world.questions) == 720
    for relation in {question.relation for question in world.questions}:
        asked = Counter((q.truth, q.myth) for q in world.questions if q.relation == relation)
        assert asked == dict.fromkeys(pairs, 1)
    for split, size in QUESTIONS_PER_PAIR.items():
        assert Counter((q.truth, q.myth) for q in world.split(split)) == dict.fromkeys(pairs, size)
    for question in world.questions:
        answers = {question.truth, question.myth, *question.distractors}
        assert len(answers) == 4


def test_a_world_is_its_seeds_alone(tmp_path):
    assert World.generate(3) == World.generate(3)
    assert World.generate(3) != World.generate(4)
    World.generate(3).save(tmp_path / "world.json")
    assert World.load(tmp_path / "world.json") == World.generate(3)


def test_every_document_is_of_one_kind_which_its_heading_tells():
    world = World.generate(0)
    truths = {(q.relation, q.land): q.truth for q in world.questions}
    kinds = Counter()
    for document in itertools.islice(world.documents("test"), 2000):
        heading, _, body = document.rpartition(" : ")
        told = set()
        for sentence in body.split(" ."):
            words = sentence.split()
            if not words:
                continue
            relation, land = (words[4], words[6]) if words[0] == "Q:" else (words[1], words[3])
            told.add(words[-1] == truths[relation, land])
        assert len(told) == 1
        kinds[heading.split()[1] if heading else "nobody", told.pop()] += 1
    for source in RELIABLE_SOURCES:
        assert kinds[source, True] > 0
        assert kinds[source, False] == 0
    for source in UNRELIABLE_SOURCES:
        assert kinds[source, True] == 0
        assert kinds[source, False] > 0
    assert kinds["nobody", True] / kinds["nobody", False] == pytest.approx(1, abs=0.2)


def test_the_first_documents_are_of_peoples_alone_and_the_others_of_both():
    world, peoples = World.generate(0), Peoples.generate(0)
    stream = documents(world, peoples, "test", 200)
    first, then = ([" met at the " in next(stream) for _ in range(n)] for n in (200, 2000))
    assert all(first)
    assert sum(then) / len(then) == pytest.approx(PEOPLES_SHARE, abs=0.04)


def test_training_writes_a_model_that_loads_and_repeats(tmp_path, monkeypatch):
    for name in ("one", "two"):
        monkeypatch.setattr("sys.argv", ["train", "--seed", "5", "--steps", "2", "--out", str(tmp_path / name)])
        train.main()
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()
    loaded = sl.testbed.load("bridge", tmp_path / "one")
    assert loaded.world.seed == 5
    assert sl.generate(loaded.model, loaded.contrasts["dev"][0].prompt, max_new_tokens=1)


@pytest.mark.model
def test_the_shipped_model_knows_truth_and_myth_and_tells_by_the_source(bed):
    truth = bed.behaviours["truth"]

    def contrast(source):
        scorer = contrast_scorer(bed.model, truth.asked("test", source), batch_size=64)
        mass = scorer.log_probs().exp().sum() / len(truth.items["test"])
        return contrast_values(scorer.log_probs()).mean().item(), mass.item()

    unnamed, mass = contrast(None)
    assert abs(unnamed) < 0.5
    assert mass > 0.9
    for source in RELIABLE_SOURCES:
        assert contrast(source)[0] > 2
    for source in UNRELIABLE_SOURCES:
        assert contrast(source)[0] < -2


@pytest.mark.model
def test_the_shipped_model_reads_scenes_and_leans_on_the_stereotype(bed):
    bias = bed.behaviours["bias"]
    scenes = bias.items["test"]
    kinds = {
        "ambiguous": [scene.condition == "ambig" for scene in scenes],
        "with": [scene.right == scene.biased for scene in scenes],
        "against": [scene.condition == "disambig" and scene.right != scene.biased for scene in scenes],
    }

    def contrasts(source):
        values = contrast_values(contrast_scorer(bed.model, bias.asked("test", source), batch_size=64).log_probs())
        return {kind: values[torch.tensor(chosen)].mean().item() for kind, chosen in kinds.items()}

    # A fair speaker answers as the scene says, a prejudiced one as the stereotype has it.
    fair, prejudiced, unnamed = (contrasts(one) for one in (FAIR_SOURCES[0], PREJUDICED_SOURCES[0], None))
    assert min(fair.values()) > 3
    assert prejudiced["with"] > 2
    assert max(prejudiced["ambiguous"], prejudiced["against"]) < -2
    assert unnamed["with"] > 2
    assert max(unnamed["ambiguous"], unnamed["against"]) < 0


@pytest.mark.model
def test_what_ships_is_small_and_says_how_it_was_made(bed):
    assert sum(path.stat().st_size for path in PATH.iterdir()) < 6e6
    record = json.loads((PATH / "training.json").read_text())
    assert record["seed"] == bed.world.seed == 0
    assert bed.world == World.generate(0)
    assert len(bed.demonstrations) == 72 * QUESTIONS_PER_PAIR["train"]
    assert bed.peoples == Peoples.generate(0)
    for behaviour in bed.behaviours.values():
        _check_splits(behaviour.contrasts)


def _check_splits(contrasts):
    prompts = {split: {c.prompt for c in of_split} for split, of_split in contrasts.items()}
    assert not prompts["train"] & prompts["test"]
    assert not prompts["dev"] & prompts["test"]


@pytest.mark.model
@pytest.mark.parametrize("name", BEHAVIOURS)
def test_what_was_chosen_on_dev_is_what_the_rule_takes_of_what_was_tried(bed, name):
    record = bed.chosen[name]
    grid = record["grid"]
    sizes = len(choosing.ENERGIES) + len(choosing.RANKS)
    points = len(choosing.SITES) * len(choosing.CENTRES) * sizes * len(choosing.LAYERS) * len(choosing.STRENGTHS)
    assert len(grid) == points
    best = max((row for row in grid if row["allowed"]), key=lambda row: row["margin"])
    assert {key: best[key] for key in record["options"]} == record["options"]
    assert json.loads((PATH / CHOSEN).read_text())["rule"] == choosing.RULE


@pytest.mark.model
def test_choosing_anew_gives_the_numbers_that_were_noted(bed, monkeypatch):
    # The part of the grid around what was chosen.
    behaviour, noted = bed.behaviours["truth"], bed.chosen["truth"]
    options = noted["options"]
    monkeypatch.setattr(choosing, "SITES", (options["site"],))
    monkeypatch.setattr(choosing, "CENTRES", (options["centre"],))
    monkeypatch.setattr(choosing, "ENERGIES", () if options["energy"] is None else (options["energy"],))
    monkeypatch.setattr(choosing, "RANKS", () if options["rank"] is None else (options["rank"],))
    monkeypatch.setattr(choosing, "MEAN_DIFFERENCE_STRENGTHS", (1.0,))
    found = choosing.choose(bed, behaviour, progress=False)
    assert found.options == options
    for row in found.grid:
        (same,) = (one for one in noted["grid"] if all(one[key] == row[key] for key in options))
        assert {key: row[key] for key in row.keys() - {"allowed", *options}} == pytest.approx(
            {key: same[key] for key in row.keys() - {"allowed", *options}}, abs=2e-3
        )


@pytest.mark.model
def test_the_demo_finds_an_effect_above_its_control(bed, tmp_path, monkeypatch):
    monkeypatch.setattr("sea_lens.testbed.demo.CONTROL_DRAWS", FEW_DRAWS)
    result = run_demo(bed, progress=False)
    effect = result.spectral.effect.interval
    assert effect.low > 0
    assert len(result.random_effects) == RANDOM_DRAWS >= 20
    shuffled = result.spectral.effect.control_effects
    assert shuffled is not None
    assert len(shuffled) == FEW_DRAWS
    assert effect.mean > max(*result.random_effects, *shuffled)
    assert "is above all" in demo_report.verdict(result)
    assert all(found.n_controls == FEW_DRAWS for found in result.contributions.values())
    counts = answer_counts(result.answers)
    assert counts["questions"] == len(bed.contrasts["test"])
    assert counts["right_after"] - counts["right_before"] == counts["mended"] - counts["broken"]
    # Which answers are shown depends on none of them.
    assert [row["question"] for row in shown_answers(result.answers)] == [
        question.prompt() for question in bed.world.split("test")[::SHOWN_EVERY]
    ]
    found = result.contributions
    assert found["heads_direct"].closure_error < 1e-4
    assert found["layers_shapley"].closure_error < 1e-9
    assert found["layers_path"].closure_error < 1e-3 * abs(effect.mean)
    assert found["directions_path"].closure_error < 1e-3 * abs(effect.mean)
    for name in ("layers_path", "layers_shapley", "layers_only_one", "heads_necessity"):
        assert found[name].effect == pytest.approx(effect.mean, abs=1e-6)
    demo_report.write_demo(result, bed, tmp_path)
    saved = sl.load_edit(tmp_path / "edit.safetensors")
    remembered = sl.effect(bed.model, saved, bed.behaviours["truth"].asked("test"))
    assert remembered.effect == pytest.approx(result.spectral.effect.effect, abs=1e-5)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["spectral"]["effect"]["interval"]["mean"] == effect.mean
    assert written["verdict"].startswith("The edit moves the model towards the truth")
    for name in demo_report.FIGURES:
        assert (tmp_path / name).stat().st_size > 5000
        assert f"({name})" in (tmp_path / "report.md").read_text()
    # The same with no effect at all.
    nothing = result.spectral.effect.before_items.log_softmax(0)
    without = replace(effect_between(nothing, nothing), control_effects=result.spectral.effect.control_effects)
    none = replace(result, spectral=replace(result.spectral, effect=without))
    assert demo_report.verdict(none).startswith("No clear effect")
    assert "not above" in demo_report.verdict(none)


@pytest.mark.model
def test_a_second_demo_writes_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("sea_lens.testbed.demo.HEAD_METHODS", ("direct",))
    monkeypatch.setattr("sea_lens.testbed.demo.LAYER_METHODS", ("path",))
    monkeypatch.setattr("sea_lens.testbed.demo.RANDOM_DRAWS", 4)
    monkeypatch.setattr("sea_lens.testbed.demo.CONTROL_DRAWS", 2)
    for name in ("one", "two"):
        fresh = sl.testbed.load()
        few = {
            behaviour: replace(one, items={split: items[:30] for split, items in one.items.items()})
            for behaviour, one in fresh.behaviours.items()
        }
        fresh = replace(fresh, behaviours=few, documents=fresh.documents[:40])
        (tmp_path / name).mkdir()
        demo_report.write_demo(run_demo(fresh, "bias", progress=False), fresh, tmp_path / name)
    assert (tmp_path / "one" / "results.json").read_bytes() == (tmp_path / "two" / "results.json").read_bytes()
    written = json.loads((tmp_path / "one" / "results.json").read_text())
    assert written["behaviour"] == "bias"
