"""Two processes, or two batches for each step, train as one batch of twice the size does."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import interp
import tuning_oracles as oracles
import tuning_scripts as scripts


@pytest.fixture(scope="module")
def alone():
    return scripts.train_shared(4)


def assert_close(losses, state, alone):
    assert list(losses) == pytest.approx(alone.loss.tolist(), abs=1e-4)
    ours = alone.vlm.model.state_dict()
    assert max((value - ours[key]).abs().max().item() for key, value in state.items()) <= 1e-5


def test_the_rows_of_a_step_differ_in_answer_tokens():
    """Else a mean of means would be the mean over all tokens, and the tests below could not fail."""
    for some in oracles.batches(oracles.rows(12), 4, 3):
        counts = [int((oracles.encode(half)["labels"] != -100).sum()) for half in (some[:2], some[2:])]
        assert max(counts) > 1.3 * min(counts)


def test_two_gloo_processes(alone, tmp_path):
    root = Path(interp.__file__).parents[1]
    paths = [str(root), str(Path(scripts.__file__).parent)]
    process = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(scripts.__file__, "shared", str(tmp_path)),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0, process.stderr
    written = interp.load(tmp_path / "out", device="cpu").model.state_dict()
    for rank in (0, 1):
        frame = pd.read_json(tmp_path / f"frame{rank}.json")
        assert_close(frame["loss"], written, alone)
    names = ["aligned0.json", "aligned1.json", "frame0.json", "frame1.json", "out"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    aligned = scripts.train_aligned(4)
    for rank in (0, 1):
        frame = pd.read_json(tmp_path / f"aligned{rank}.json")
        assert list(frame["loss"]) == pytest.approx(aligned.loss.tolist(), abs=1e-4)
        assert list(frame["extra_loss"]) == pytest.approx(aligned.extra_loss.tolist(), abs=1e-4)


def test_two_batches_for_each_step(alone):
    result = scripts.train_shared(2, gradient_accumulation_steps=2)
    assert_close(result.loss, result.vlm.model.state_dict(), alone)
    assert len(result.seconds) == 5
