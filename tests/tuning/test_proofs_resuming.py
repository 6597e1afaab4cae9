"""A training that was killed and goes on is the one that was never interrupted, step for step and bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import interp
import tuning_scripts as scripts


def start(what, out):
    root = Path(interp.__file__).parents[1]
    paths = [str(root), str(Path(scripts.__file__).parent)]
    return subprocess.run(
        [sys.executable, scripts.__file__, what, str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def whole():
    return scripts.train(None)


@pytest.fixture(scope="module")
def dead(tmp_path_factory):
    """A run that was killed between two checkpoints."""
    out = tmp_path_factory.mktemp("killed") / "run"
    process = start("killed", out)
    assert process.returncode == -signal.SIGKILL, process.stderr
    return out


def partial(out):
    """Where a run leaves its checkpoints until it is finished."""
    return out.with_name(f"{out.name}.partial")


def copied(out, folder):
    shutil.copytree(out.parent, folder / "copy")
    return folder / "copy" / out.name


def assert_same(result, whole):
    assert result.loss.tolist() == whole.loss.tolist()
    assert result.rate.tolist() == whole.rate.tolist()
    assert len(result.loss) == scripts.STEPS
    ours, theirs = result.vlm.model.state_dict(), whole.vlm.model.state_dict()
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
    assert result.hashes_after == whole.hashes_after
    assert result.unchanged
    assert result.to_frame().drop(columns="seconds", errors="ignore").shape == whole.to_frame().shape


def steps_taken(train):
    """How many optimizer steps a call takes, beside its result."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    taken = []
    handle = register_optimizer_step_pre_hook(lambda *_: taken.append(1))
    try:
        return train(), len(taken)
    finally:
        handle.remove()


@pytest.mark.parametrize(("how", "left"), [("killed", 3), ("torn", 4)])  # a torn third checkpoint is taken again
def test_killed_and_resumed_is_uninterrupted(how, left, dead, whole, tmp_path):
    out = copied(dead, tmp_path) if how == "killed" else tmp_path / "run"
    if how == "torn":
        assert start("torn", out).returncode == -signal.SIGKILL
    result, taken = steps_taken(lambda: scripts.train(out, resume=True))
    assert_same(result, whole)
    assert taken == left
    vlm = interp.load(out, device="cpu")
    state = whole.vlm.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in vlm.model.state_dict().items())


def test_a_folder_with_checkpoints_is_not_overwritten(dead):
    before = {file: file.stat().st_mtime_ns for file in dead.parent.rglob("*")}
    with pytest.raises(interp.InputError, match="resume") as caught:
        scripts.train(dead)
    assert "\n" not in str(caught.value)
    assert {file: file.stat().st_mtime_ns for file in dead.parent.rglob("*")} == before


def test_a_damaged_file_of_a_checkpoint_changes_nothing(dead, whole, tmp_path):
    """Each file of the last checkpoint, cut in half or gone: the run goes on from what is whole, or says which file it is."""
    newest = max(partial(dead).glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    for name in sorted(file.relative_to(partial(dead)) for file in newest.rglob("*") if file.is_file()):
        for change in (lambda file: os.truncate(file, file.stat().st_size // 2), os.remove):
            out = copied(dead, tmp_path)
            change(partial(out) / name)
            result = refusal = None
            try:
                result = scripts.train(out, resume=True)
            except interp.InputError as error:
                refusal = str(error)
            if refusal is None:
                assert_same(result, whole)
            else:
                assert "\n" not in refusal, name
                assert newest.name in refusal, name
            shutil.rmtree(out.parent)


def test_dropout_goes_on_too(tmp_path):
    """Adapters with dropout, interrupted as by Ctrl+C in the fourth step."""
    from peft import LoraConfig
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    lora = {"lora": LoraConfig(r=2, lora_alpha=4, lora_dropout=0.3)}
    taken = []

    def interrupt(*_):
        taken.append(1)
        if len(taken) == 4:
            raise KeyboardInterrupt

    whole = scripts.train(None, **lora)
    handle = register_optimizer_step_pre_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            scripts.train(tmp_path / "run", **lora)
    finally:
        handle.remove()
    result, steps = steps_taken(lambda: scripts.train(tmp_path / "run", resume=True, **lora))
    assert steps == 3
    assert_same(result, whole)
