"""Two processes that share a data set write what one would."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import pytest
import torch

import interp

SCRIPT = textwrap.dedent(
    """
    import sys, torch, interp
    torch.set_num_threads(1)
    folder, foreign, group = sys.argv[1:]
    if group == "own":
        torch.distributed.init_process_group("gloo")
    vlm = interp.load("toy", device="cpu")
    options = {"positions": "text", "batch_size": 1, "rows_per_shard": 4, "reduce": "none", "progress": False}
    data = interp.toy.scenes(27, seed=3).captions()
    acts = interp.capture(vlm, data, out=folder, **options)
    print(len(acts.ids), torch.distributed.is_initialized())
    try:
        interp.capture(vlm, data, out=foreign, **options)
    except interp.InputError as error:
        print("refused:", error)
    """
)


def launch(folder, foreign, group, size=2, script=SCRIPT):
    """As torchrun does: the same program, told by the environment which process it is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(folder), str(foreign), group],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    return [process.communicate(timeout=120) for process in started]


@pytest.fixture(scope="module")
def alone(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "acts"
    data = interp.toy.scenes(27, seed=3).captions()
    options = {"positions": "text", "batch_size": 1, "rows_per_shard": 4, "reduce": "none", "progress": False}
    interp.capture(toy, data, out=out, **options)
    return out


STOPPED = textwrap.dedent(
    """
    import os, sys, time, torch, interp
    from pathlib import Path
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    vlm = interp.load("toy", device="cpu")
    texts = [(None, "a red 3")] * 4
    data = texts + [("nothing.png", "<image>")] * 4 + texts
    own = interp.activations.store.Store.write

    def write(self, index, shard):
        if index == 0:  # the other has stopped by then
            time.sleep(3)
        return own(self, index, shard)

    interp.activations.store.Store.write = write
    try:
        interp.capture(vlm, data, positions="text", batch_size=1, rows_per_shard=4, out=folder, progress=False)
        print("done")
    except interp.InterpError as error:
        print("refused:", error)
    """
)


def test_one_that_stops_takes_nothing_from_the_others(tmp_path):
    """Process 1 fails before any shard is written; what process 0 writes is kept."""
    first, second = launch(tmp_path / "acts", "", "none", script=STOPPED)
    assert second[0].startswith("refused: row 4"), second
    assert "process 0 of 2 waited for one that has stopped" in first[0], first
    names = {path.name for path in (tmp_path / "acts").iterdir()}
    assert names == {"manifest.json", *(f"shard-0000{n}.{end}" for n in (0, 2) for end in ("json", "safetensors"))}


@pytest.mark.parametrize("group", ["none", "own"])
def test_two_write_what_one_writes(alone, tmp_path, group):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("...")
    for out, err in launch(tmp_path / "acts", tmp_path / "foreign", group):
        rows, refused = out.splitlines()
        assert rows == f"27 {group == 'own'}", err  # a group of the caller's is left, one of ours is not
        assert refused.startswith("refused: "), err
        assert "holds 'thesis.tex' but no activations" in refused
    for path in sorted(alone.iterdir()):
        theirs = tmp_path / "acts" / path.name
        if path.name != "manifest.json":
            assert theirs.read_bytes() == path.read_bytes()
    ours, theirs = (json.loads((folder / "manifest.json").read_text()) for folder in (alone, tmp_path / "acts"))
    assert theirs.pop("run")["processes"] == 2
    ours.pop("run")
    assert theirs == ours
    assert len(list((tmp_path / "acts").iterdir())) == len(list(alone.iterdir()))
    assert torch.equal(interp.open_activations(tmp_path / "acts").rows, interp.open_activations(alone).rows)


DRAWN = textwrap.dedent(
    """
    import sys, torch, interp
    torch.set_num_threads(1)
    vlm = interp.load("toy", device="cpu")
    data = interp.toy.scenes(10, seed=3)
    options = {"sites": ["resid", "projector"], "reduce": "mean:3", "seed": 5, "batch_size": 2, "rows_per_shard": 4}
    acts = interp.capture(vlm, data, out=sys.argv[1], progress=False, **options)
    print(acts.pooled("resid"))
    """
)


def test_two_draw_the_positions_that_one_draws(toy, tmp_path):
    """What is drawn depends on the row's number in the data, not on the process that has it."""
    data = interp.toy.scenes(10, seed=3)
    options = {"sites": ["resid", "projector"], "reduce": "mean:3", "seed": 5, "progress": False}
    alone = interp.capture(toy, data, **options)
    for out, err in launch(tmp_path / "acts", "", "none", script=DRAWN):
        assert out.strip() == str(alone.pooled("resid")), err
    together = interp.open_activations(tmp_path / "acts")
    assert json.loads((tmp_path / "acts" / "manifest.json").read_text())["run"]["processes"] == 2
    for site in ("resid", "projector"):
        torch.testing.assert_close(together[site][...], alone[site], atol=1e-4, rtol=1e-4)
        assert together.pooled(site) == {"least": 3, "most": 3, "mean": 3.0}


ROUNDS = textwrap.dedent(
    """
    import os, time
    import torch.distributed as dist
    from interp.activations.processes import processes
    own = dist.destroy_process_group

    def late(*group):
        time.sleep(0.5)
        own(*group)

    if os.environ["RANK"] == "0":  # which keeps the store: the other is ahead of it each time
        dist.destroy_process_group = late
    for turn in range(3):
        with processes() as ours:
            assert ours.exchange((ours.rank, turn)) == [(0, turn), (1, turn)]
    print("met")
    """
)


def test_one_capture_after_another_finds_the_others_each_time():
    """Each capture makes a group anew, and a process that is ahead must not meet the group that others are still leaving."""
    assert [out.strip() for out, _ in launch("", "", "none", script=ROUNDS)] == ["met", "met"]
