"""`tune` with a folder: it is left whole or not at all, and a run that was killed goes on as if it had not been."""

import pytest
import torch
from safetensors.torch import load_file

import interp
from interp.tuning.trainer import TuningTrainer
from interp.tuning.tune import tune
from interp.tuning.work_folder import WorkFolder

FEW = {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 5e-4}
BAND = range(2, 6)
LAYER = "model.language_model.layers."


def weights(vlm):
    return {name: each.detach().clone() for name, each in vlm.model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Killed(BaseException):
    pass


def stop(monkeypatch, kind, name, at):
    """Stop a training when it calls this method in that step."""
    method = getattr(kind, name)

    def stopped(self, *arguments, **options):
        if getattr(self, "state", None) is None or self.state.global_step == at:
            raise Killed
        return method(self, *arguments, **options)

    monkeypatch.setattr(kind, name, stopped)


LONG = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 5e-4,
}
LONG |= {"save_steps": 1}


@pytest.fixture(scope="module")
def whole(stage1, rows):
    return tune(stage1, rows[:6], layers=BAND, arguments=LONG)


@pytest.mark.parametrize(
    ("kind", "name", "at", "left"),
    [
        (TuningTrainer, "log", 3, "checkpoint-2"),
        (TuningTrainer, "_save_rng_state", 3, "checkpoint-2"),  # in the middle of a checkpoint
        (TuningTrainer, "log", 1, None),
        (WorkFolder, "finish", None, "checkpoint-4"),
    ],
)
def test_a_run_that_was_killed_goes_on_as_if_it_had_not(
    kind, name, at, left, whole, stage1, rows, tmp_path, monkeypatch
):
    call = {"layers": BAND, "arguments": LONG, "out": tmp_path / "out"}
    with monkeypatch.context() as patch:
        stop(patch, kind, name, at)
        with pytest.raises(Killed):
            tune(stage1, rows[:6], **call)
    assert not (tmp_path / "out").exists()
    steps = sorted(path.name for path in (tmp_path / "out.partial").glob("checkpoint-*"))
    assert steps[-1:] == ([] if left is None else [left])
    if left is None:  # nothing to go on from, and nothing in the way
        assert list(tmp_path.iterdir()) == []
    else:
        with pytest.raises(interp.InputError, match=r"'out.partial' holds a training .*: pass resume=True"):
            tune(stage1, rows[:6], **call)
    again = tune(stage1, rows[:6], resume=True, **call)
    assert torch.equal(again.loss, whole.loss)
    assert torch.equal(again.rate, whole.rate)
    assert same(weights(again.vlm), weights(whole.vlm))
    assert again.seconds.isnan().any(dim=1).tolist() == [True, False, False, False]
    assert (again.flops, again.optimizer_bytes) == (whole.flops, whole.optimizer_bytes)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_finished_run_is_loaded_and_another_call_is_refused(whole, stage1, rows, tmp_path):
    call = {"layers": BAND, "arguments": LONG, "out": tmp_path / "out"}
    first = tune(stage1, rows[:6], **call)
    assert torch.equal(first.loss, whole.loss)
    again = tune(stage1, rows[:6], resume=True, **call)
    assert again.to_frame().equals(first.to_frame())
    assert same(weights(again.vlm), weights(first.vlm))
    assert same(weights(interp.load(tmp_path / "out", device="cpu")), weights(first.vlm))
    for changes, line in (
        ({"layers": [1]}, r"'out' was begun with layers=\[2, 3, 4, 5\], and resume=True asks for layers=\[1\]"),
        ({"arguments": {**LONG, "learning_rate": 1e-4}}, "begun with learning_rate=0.0005"),
        ({"max_length": 90}, "begun with max_length=None"),
        ({"arguments": {**LONG, "dataloader_drop_last": True}}, "asks for dataloader_drop_last=True"),
        ({"arguments": {**LONG, "lr_scheduler_kwargs": {"num_cycles": 2}}}, "asks for lr_scheduler_kwargs="),
    ):
        with pytest.raises(interp.InputError, match=line):
            tune(stage1, rows[:6], resume=True, **{**call, **changes})
    system = {"from": "system", "value": "where ?"}
    said = {**rows[5], "conversations": [system, *rows[5]["conversations"]]}
    for last in (rows[6], said):
        with pytest.raises(interp.InputError, match="begun with data="):
            tune(stage1, [*rows[:5], last], resume=True, **call)
    with pytest.raises(interp.InputError, match="out"):
        tune(stage1, rows[:6], **call)


def test_a_checkpoint_holds_what_is_trained(stage1, rows, tmp_path, monkeypatch):
    stop(monkeypatch, WorkFolder, "finish", None)
    with pytest.raises(Killed):
        tune(stage1, rows, layers=[7], arguments=FEW, out=tmp_path / "out")
    (step,) = (tmp_path / "out.partial").glob("checkpoint-*")
    trained = sum(4 * each.numel() for name, each in stage1.model.named_parameters() if f"{LAYER}7." in name)
    assert trained < (step / "trained.safetensors").stat().st_size < 1.02 * trained + 2000
    assert not (step / "training_args.bin").exists()
    tensors = load_file(step / "trained.safetensors")
    monkeypatch.undo()
    result = tune(stage1, rows, layers=[7], arguments=FEW, out=tmp_path / "out", resume=True)
    assert len(result.loss) == 3  # no step is left, although the epoch has one
    assert all(torch.equal(each, result.vlm.model.get_parameter(name)) for name, each in tensors.items())


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_the_users_beside_it_is_not_touched(resume, stage1, rows, tmp_path):
    """It has the name of the folder for checkpoints by chance."""
    notes = tmp_path / "out.partial" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    with pytest.raises(interp.InputError, match=r"'out.partial', where .* keeps its checkpoints, holds something else"):
        tune(stage1, rows[:2], layers=[7], arguments=FEW, out=tmp_path / "out", resume=resume)
    assert notes.read_text() == "mine"
