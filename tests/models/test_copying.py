"""Copies and pickles: of a model, with its weights, its structure and its proofs; of a batch, without its model."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import interp
from interp import patching
from interp.interventions import Knockout, Patch
from interp.models.batches.keys import AbsentMaker


@pytest.fixture(scope="module")
def untouched(toy, mixed):
    return toy.logits(mixed)


def same(a, b):
    return torch.equal(a, b)


# Models ------------------------------------------------------------------------------------------------------------------


def test_a_deep_copy_has_weights_of_its_own(toy, mixed, untouched):
    copied = copy.deepcopy(toy)
    assert same(copied.logits(mixed), untouched)
    assert (copied.name, copied.structure, copied.generate(mixed)) == (toy.name, toy.structure, toy.generate(mixed))
    with torch.no_grad():
        copied.model.lm_head.weight.zero_()
    assert copied.logits(mixed).count_nonzero() == 0
    assert same(toy.logits(mixed), untouched)


def test_a_deep_copy_takes_interventions_and_sweeps(toy, mixed):
    copied, cut = copy.deepcopy(toy), Knockout(source="image", target="last", layers="all")
    assert same(copied.logits(mixed, [cut]), toy.logits(mixed, [cut]))
    text = mixed.row(1)
    sweeps = [
        patching.layer_sweep(vlm, text, metric=patching.probability("top"), window=4).values for vlm in (toy, copied)
    ]
    assert same(*sweeps)


def test_a_shallow_copy_shares_the_weights(toy, mixed, untouched):
    copied = copy.copy(toy)
    assert copied is not toy
    assert copied.model is toy.model
    assert same(copied.logits(mixed), untouched)
    copied.structure = None
    assert toy.structure is not None


def test_a_copy_within_a_copy_is_one(toy, mixed):
    first, second, batch = copy.deepcopy([toy, toy, mixed])
    assert first is second
    assert first is not toy
    assert batch.row(0).tokens == mixed.row(0).tokens


def test_a_pickle_takes_the_weights_along(toy, mixed, untouched):
    again = pickle.loads(pickle.dumps(toy))
    assert same(again.logits(mixed), untouched)
    assert again.generate(mixed) == toy.generate(mixed)
    assert again.structure == toy.structure
    assert again.tried == toy.tried
    assert again.model is not toy.model


@pytest.mark.parametrize("again", [copy.deepcopy, lambda vlm: pickle.loads(pickle.dumps(vlm))], ids=["copy", "pickle"])
def test_a_model_without_a_processor_and_one_that_was_transplanted(again, toy, stage1, tiny):
    plain = interp.load(model=tiny)
    batch = plain.prepare(encoding={"input_ids": torch.tensor([[11, 12, 13, 14]])})
    assert same(again(plain).logits(batch), plain.logits(batch))
    hybrid = patching.transplant(stage1, toy, [2])
    text = toy.prepare(["a red 3 at top ."])
    assert again(hybrid).name == hybrid.name
    assert same(again(hybrid).logits(text), hybrid.logits(text))


def test_another_process_gets_the_same_logits(toy, mixed, untouched, tmp_path):
    """Nothing of transformers is set up there: no model of this class was ever built."""
    (tmp_path / "in").write_bytes(pickle.dumps((toy, mixed)))
    code = """
import pickle, sys
from pathlib import Path
vlm, batch = pickle.loads(Path(sys.argv[1], "in").read_bytes())
out = (vlm.logits(batch), vlm.generate(batch), batch.row(0), vlm.logits(vlm.prepare(batch.texts, batch.images)))
Path(sys.argv[1], "out").write_bytes(pickle.dumps(out))
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    logits, words, row, remade = pickle.loads((tmp_path / "out").read_bytes())
    assert torch.allclose(logits, untouched, atol=1e-4)
    assert same(logits, remade)
    assert words == toy.generate(mixed)
    assert row.tokens == mixed.row(0).tokens
    assert row._maker is toy.maker  # back in this process it finds its maker


def test_what_cannot_be_copied_or_pickled_says_so(toy, tiny, remote_toy):
    with pytest.raises(interp.InputError, match="runs remotely and cannot be pickled: load it in each process"):
        pickle.dumps(remote_toy)
    hooked = interp.load(model=copy.deepcopy(tiny))
    hooked.model.register_forward_hook(lambda *_: None)
    copy.deepcopy(hooked)
    with pytest.raises(interp.InputError, match=r"cannot be pickled .*lambda.*: load it in each process"):
        pickle.dumps(hooked)
    spread = interp.load(model=copy.deepcopy(tiny))
    spread.model.lm_head._hf_hook = object()
    for act in (copy.deepcopy, pickle.dumps):
        with pytest.raises(interp.InputError, match="spread over devices by accelerate"):
            act(spread)


def test_a_remote_model_is_copied_and_its_traces_take_it_along(remote_toy):
    batch = remote_toy.prepare(["a red 3 at top . what colour is the 3 ?"] * 2)
    assert copy.deepcopy(remote_toy).generate(batch) == copy.copy(remote_toy).generate(batch) == ["red", "red"]
    with remote_toy.trace(batch):
        state = remote_toy.layers[3].output[batch.positions["last"]].save()
    assert state.shape == (2, 128)


class Adapted(nn.Module):
    """A wrapper that hands everything on, as PEFT's does."""

    def __init__(self, model):
        super().__init__()
        self.base = model

    def get_base_model(self):
        return self.base

    def forward(self, *args, **kwargs):
        return self.base(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["base"], name)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda vlm: pickle.loads(pickle.dumps(vlm))], ids=["copy", "pickle"])
def test_a_wrapped_model(again, tiny):
    wrapped = interp.load(model=Adapted(copy.deepcopy(tiny)).eval())
    batch = wrapped.prepare(encoding={"input_ids": torch.tensor([[11, 12, 13, 14]])})
    assert same(again(wrapped).logits(batch), wrapped.logits(batch))


# Batches -----------------------------------------------------------------------------------------------------------------


def elsewhere(batch):
    """The batch as a process sees it that does not have its model."""
    data = pickle.dumps(batch)
    assert len(data) < 200_000  # a model is a hundred times that
    again = pickle.loads(data.replace(batch._maker.key.encode(), b"0" * len(batch._maker.key)))
    assert isinstance(again._maker, AbsentMaker)
    return again


def equal(a, b):
    assert a.tokens == b.tokens
    assert a.texts == b.texts
    assert len(a.images) == len(b.images)
    assert a.inputs.keys() == b.inputs.keys()
    assert all(same(a.inputs[name], b.inputs[name]) for name in a.inputs)
    assert list(a.positions.masks) == list(b.positions.masks)
    assert all(same(a.positions[name], b.positions[name]) for name in b.positions.masks)
    for row in range(len(a)):
        assert a.positions.grid(row) == b.positions.grid(row)
        boxes = zip(a.positions.boxes(row), b.positions.boxes(row), strict=True)
        assert all(one is other is None or same(one, other) for one, other in boxes)


@pytest.fixture(scope="module")
def pictured(toy, few):
    """Two rows with a picture and a span each, one of them padded."""
    texts = ["<image> what colour is the 3 ?", "<image> where ?"]
    return toy.prepare(texts, [few[0].image, few[1].image], spans={"picture": (0, 7)})


def test_a_batch_finds_its_maker_again(pictured, toy):
    for again in (pickle.loads(pickle.dumps(pictured)), copy.deepcopy(pictured), copy.copy(pictured)):
        assert again._maker is toy.maker
        equal(again, pictured)
        equal(again.row(1), pictured.row(1))


def test_a_batch_without_its_maker_runs_and_is_cut(pictured, toy):
    again = elsewhere(pictured)
    equal(again, pictured)
    assert same(toy.logits(again), toy.logits(pictured))
    for cut in (lambda b: b.row(1), lambda b: b.part([1, 0]), lambda b: b.row(0).repeat(3), lambda b: b.part([1, 1])):
        equal(cut(again), cut(pictured))
    assert pickle.loads(pickle.dumps(again))._maker == again._maker


def test_rows_of_text_lose_the_padding_that_they_needed(toy):
    batch = toy.prepare(["a red 3 at top .", "where is the 3 ? top"], spans=[{"digit": "3"}, {}])
    again = elsewhere(batch)
    for row in range(2):
        assert again.row(row).tokens == batch.row(row).tokens
        assert same(toy.logits(again.row(row)), toy.logits(batch.row(row)))
        assert same(again.row(row).positions["digit"], batch.row(row).positions["digit"])


def test_rows_that_cannot_be_cut_say_so(mixed, toy):
    again = elsewhere(mixed)  # two images among three rows: which is whose is known to the processor alone
    assert torch.allclose(toy.logits(again), toy.logits(mixed))
    with pytest.raises(interp.InputError, match="the model that this batch was pickled from is not in this process"):
        again.row(0)


def test_a_batch_of_another_model_is_refused_after_a_pickle_too(pictured, tiny):
    with pytest.raises(interp.InputError, match="was made for another model"):
        interp.load(model=tiny).logits(elsewhere(pictured))


class Prompts(torch.utils.data.Dataset):
    def __init__(self, vlm, texts):
        self.vlm, self.texts = vlm, texts

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        return self.vlm.prepare([self.texts[index]])


def test_workers_of_a_data_loader_make_batches(toy):
    texts = ["a red 3 at top .", "where is the 3 ?"]
    loader = DataLoader(Prompts(toy, texts), batch_size=None, num_workers=1)
    for text, batch in zip(texts, loader, strict=True):
        equal(batch, toy.prepare([text]))
        assert batch._maker is toy.maker


def test_what_joblib_sends_to_its_workers_is_a_batch_there():
    """Its pickler is cloudpickle's, which sends classes by value after a model was loaded to run remotely, and only then."""
    code = """
import interp, pickle
from joblib.externals.loky.backend.reduction import dumps
vlm = interp.load("toy", device="cpu")
print(type(pickle.loads(dumps(vlm.prepare(["where is the 3 ?"])))) is interp.Batch)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "True"


# Other values ------------------------------------------------------------------------------------------------------------


def test_other_values_are_pickled(toy, pictured, few):
    acts = interp.capture(toy, few, progress=False)
    patch = Patch(site="resid_pre", layers=[1], positions="last", value=pictured.row(0))
    for value in (
        acts,
        patch,
        pictured.positions,
        toy.structure,
        few,
        few[0],
        patching.logit_difference("red", "blue"),
    ):
        for again in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value)):
            assert type(again) is type(value)
    assert same(pickle.loads(pickle.dumps(acts))["resid"], acts["resid"])
