"""Every band is tuned and asked alike; a comparison that died goes on; what cannot be compared is refused first."""

import json
import sys

import pytest
import torch
from peft import LoraConfig
from transformers import TrainingArguments

import interp
from interp.errors import InputError, InputTypeError
from interp.tuning import Band, BandComparison, compare_bands, score, tune

MODULE = sys.modules["interp.tuning.compare_bands"]
ARGUMENTS = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 2e-3, "save_steps": 1}
SEEDS = [3, 5]


def some_bands(number):
    return {"early": range(2), "random": interp.tuning.bands(8, 2, number)["random"]}


def sets():
    return {
        "data": interp.toy.conversations(6, seed=0, questions=1),
        "test": interp.toy.questions(6, seed=0, group="perception"),
        "text": interp.toy.questions(3, seed=1, modality="text"),
    }


def asked(stage1, **changes):
    call = sets() | {"bands": some_bands, "seeds": SEEDS, "arguments": ARGUMENTS, "timing_rounds": 0, "progress": False}
    call |= changes
    return compare_bands(stage1, call.pop("data"), **call)


@pytest.fixture(scope="module")
def comparison(stage1):
    torch.manual_seed(0)
    made = asked(stage1)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.rand(1).equal(drawn)  # the caller's random numbers are as without it
    return made


def test_each_run_is_that_of_tune(comparison, stage1):
    given = sets()
    assert list(comparison.bands) == ["full", "early", "random"]
    for seed, name in ((0, "early"), (1, "random")):
        band, place = comparison.bands[name][seed], list(comparison.bands).index(name)
        alone = tune(stage1, given["data"], band.layers, arguments={**ARGUMENTS, "seed": SEEDS[seed]})
        assert comparison.loss[place, seed].equal(alone.loss)
        for answers, name_of_set in ((comparison.test, "test"), (comparison.text, "text")):
            assert answers.right[place, seed].tolist() == score(alone.vlm, given[name_of_set])["right"].tolist()
        row = comparison.costs.set_index(["band", "seed"]).loc[(name, SEEDS[seed])]
        assert row["flops"] == alone.flops
        assert row["trained_parameters"] == alone.trained_parameters
        assert row["unchanged"]
    assert not comparison.loss[0, 0].equal(comparison.loss[0, 1])  # other seeds, other orders


def test_the_untuned_model_answers_the_same_questions(comparison, stage1):
    given = sets()
    before = score(stage1, given["test"])
    assert comparison.test.before.tolist() == before["right"].tolist()
    assert comparison.test.questions.equals(before.drop(columns="right"))
    assert comparison.text.before.tolist() == score(stage1, given["text"])["right"].tolist()
    assert (comparison.test.right != comparison.test.before).any()


def test_random_layers_are_drawn_for_each_seed(comparison):
    one, other = (band.layers for band in comparison.bands["random"])
    assert one != other
    notes = comparison.provenance.notes
    assert "random: other layers with each seed, so its intervals are over draws too; timed with the first" in notes
    assert any(note.startswith("2 seeds: ") for note in notes)
    assert any("9 rows or groups" in note or "3 rows or groups" in note for note in notes)


def test_steps_are_timed_in_turns(stage1, monkeypatch):
    order = []

    def counted(vlm, data, layers, *, arguments, **parts):
        order.append((tuple(layers), arguments["max_steps"], arguments["seed"]))
        return tune(vlm, data, layers, arguments=arguments, **parts)

    monkeypatch.setattr(MODULE, "tune", counted)
    rows = interp.toy.conversations(2, seed=0, questions=1)
    brief = {"max_steps": 1, "per_device_train_batch_size": 1}
    timed = asked(stage1, data=rows, bands={"last": [7]}, seeds=1, arguments=brief, timing_rounds=2, text=None)
    assert timed.seconds.shape == (2, 2, 3)
    assert (timed.seconds > 0).all()
    everything = tuple(range(8))
    assert order == [
        (everything, 1, 0), ((7,), 1, 0), (everything, 3, 0), ((7,), 3, 0), ((7,), 3, 0), (everything, 3, 0)
    ]  # fmt: skip


def test_arguments_of_transformers_are_taken(stage1, comparison):
    """An object holds what a dict says, and its seed is replaced."""
    own = TrainingArguments(
        output_dir="unused",
        report_to="none",
        seed=42,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        max_grad_norm=1.0,
        **ARGUMENTS,
    )
    one = asked(stage1, bands={"early": range(2)}, seeds=[3], arguments=own, text=None)
    assert one.loss[:, 0].equal(comparison.loss[:2, 0])
    assert own.seed == 42


def test_adapters_are_for_bands_of_layers(stage1):
    bands = {"early": range(2), "connector": Band((), connector=True, head=True)}
    with_lora = asked(stage1, bands=bands, seeds=1, lora=2, text=None)
    parameters = with_lora.costs.set_index("band")["trained_parameters"]
    assert 0 < parameters["early"] < parameters["full"] < 60_000
    assert parameters["connector"] > 28_928
    assert with_lora.bands["full"] == [Band(range(8), connector=False, vision=False, head=False)]
    assert with_lora.bands["connector"] == [Band((), connector=True, vision=False, head=True)]


class Died(Exception):
    pass


def dying(after, what):
    """`what`, which raises after so many calls."""
    calls = []

    def call(*arguments, **options):
        calls.append(arguments)
        if len(calls) > after:
            raise Died
        return what(*arguments, **options)

    return call, calls


@pytest.mark.parametrize("place", ["within a run", "before the answers"])
def test_a_comparison_that_died_goes_on(stage1, comparison, tmp_path, monkeypatch, place):
    out, call = tmp_path / "bands", {"bands": {"early": range(2)}, "text": None, "out": tmp_path / "bands"}
    with monkeypatch.context() as patch:
        if place == "before the answers":  # the untuned model's, and those of three runs
            patch.setattr(MODULE, "right_answers", dying(1 + 3, MODULE.right_answers)[0])
        else:
            trainer = sys.modules["interp.tuning.trainer"].TuningTrainer
            patch.setattr(trainer, "training_step", dying(2 * 3 + 1, trainer.training_step)[0])
        with pytest.raises(Died):
            asked(stage1, **call)
    files = {path.name for path in out.iterdir()}
    assert {"comparison.json", "00-full-seed3.json", "00-full-seed5.safetensors", "01-early-seed3.json"} <= files
    assert "01-early-seed5.json" not in files
    assert ("01-early-seed5" in files) == (place == "before the answers")
    assert ("01-early-seed5.partial" in files) == (place == "within a run")
    counted, calls = dying(100, tune)
    monkeypatch.setattr(MODULE, "tune", counted)
    again = asked(stage1, **call, resume=True)
    assert len(calls) == 1
    assert again.loss.equal(comparison.loss[:2])
    assert again.test.right.equal(comparison.test.right[:2])
    assert again.costs.equals(comparison.costs[comparison.costs["band"] != "random"].reset_index(drop=True))
    assert BandComparison.load(out / "comparison.safetensors").to_frame().equals(again.to_frame())
    assert not [path for path in out.iterdir() if path.is_dir()]
    assert asked(stage1, **call, resume=True).to_frame().equals(again.to_frame())
    assert len(calls) == 1
    for name in ("01-early-seed3.json", "comparison.json"):
        (out / name).write_text("{")
        with pytest.raises(InputError, match=f"'{name}' in 'bands' cannot be read"):
            asked(stage1, **call, resume=True)


def test_another_comparison_is_refused(stage1, tmp_path, monkeypatch):
    out = tmp_path / "bands"
    rows = interp.toy.conversations(2, seed=0, questions=1)
    call = {"data": rows, "bands": {"last": [7]}, "seeds": 1, "arguments": {"max_steps": 1}, "text": None, "out": out}
    monkeypatch.setattr(MODULE, "_runs", dying(0, None)[0])
    with pytest.raises(Died):
        asked(stage1, **call)
    plan = json.loads((out / "comparison.json").read_text())
    assert str(tmp_path) not in json.dumps(plan)
    with pytest.raises(InputError, match="'bands' holds a comparison: pass resume=True"):
        asked(stage1, **call)
    changes = {
        "seeds": 2,
        "arguments": {"max_steps": 2},
        "bands": {"last": [6]},
        "data": interp.toy.conversations(2, seed=1, questions=1),
        "test": interp.toy.questions(2, seed=3),
        "timing_rounds": 3,
    }
    for name, value in changes.items():
        with pytest.raises(InputError, match=r"'bands' was begun with .*: expected the same call, or another folder"):
            asked(stage1, **call | {name: value, "resume": True})
    with pytest.raises(Died):
        asked(stage1, **call, resume=True)
    with pytest.raises(Died):  # the order in which a set gives its names is another one in each process
        asked(stage1, **call | {"out": tmp_path / "lora", "lora": LoraConfig(target_modules=["v_proj", "q_proj"])})
    plan = json.loads((tmp_path / "lora" / "comparison.json").read_text())
    assert plan["lora"]["target_modules"] == ["q_proj", "v_proj"]
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="'full' holds something else already"):
        asked(stage1, **call | {"out": full, "resume": True})
    assert (full / "thesis.tex").read_text() == "mine"


WRONG = [
    ({"bands": {}}, "bands={}: expected one band at least"),
    ({"bands": ["early"]}, "expected a dict of bands by name"),
    ({"bands": {"early": range(7, 9)}}, r"bands\['early'\] has layer 8: 'toy:stage1' has layers 0 to 7"),
    ({"bands": {"nothing": ()}}, r"bands\['nothing'\] trains nothing: expected layers, or connector=True"),
    ({"bands": {"untuned": range(2)}}, "bands has the name 'untuned', that of a control"),
    ({"bands": {"full": range(4)}}, r"bands\['full'\] has 4 layers: expected all 8"),
    ({"bands": lambda seed: {str(seed): range(2)}}, "others for another seed"),
    ({"seeds": 0}, "seeds=0: expected how many"),
    ({"seeds": [1, 1]}, r"seeds=\[1, 1\]: expected how many"),
    ({"seeds": "three"}, "seeds='three': expected how many"),
    ({"seeds": [-1]}, "seed=-1"),
    ({"test": [(None, "a red 3")]}, "has no answer"),
    ({"test": []}, "empty"),
    ({"text": iter([])}, "text is an iterator, which can be read once"),
    ({"data": iter([])}, "data is an iterator, which can be read once"),
    ({"arguments": {"seed": 3}}, "arguments has a seed: leave it out, seeds= says which"),
    ({"arguments": {"steps": 3}}, "arguments has 'steps', which is no field of TrainingArguments"),
    ({"timing_rounds": -1}, "timing_rounds=-1"),
    ({"resume": "yes"}, "resume='yes'"),
    ({"resume": True, "out": None}, "out=None: expected the name of a folder"),
    ({"lora": "x"}, "lora='x': expected a rank"),
    ({"max_length": 0}, "max_length=0: expected an int of 2 or more"),
    ({"rank": 3}, r"compare_bands\(\) got rank=: expected lora, max_length, patch_alignment"),
    ({"test": interp.toy.questions(6, seed=0, split="train")}, r"test has row .* in common with the data, row"),
]


@pytest.mark.parametrize(
    ("change", "message"), WRONG, ids=[f"{next(iter(change))} {n}" for n, (change, _) in enumerate(WRONG)]
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    stage1, tmp_path, monkeypatch, unchecked, change, message
):
    monkeypatch.setattr(MODULE, "tune", dying(0, None)[0])
    monkeypatch.setattr(MODULE, "right_answers", dying(0, None)[0])
    if "in common" in message:
        change = change | {"data": interp.toy.conversations(6, seed=0, questions=6)}
    with pytest.raises((InputError, InputTypeError), match=message):
        asked(stage1, **{"out": tmp_path / "new", "resume": False} | change)
    assert not (tmp_path / "new").exists()


def test_a_folder_must_be_named(stage1):
    with pytest.raises(InputTypeError, match="out=3: expected the name of a folder"):
        asked(stage1, out=3)
