"""Traces that are shipped: nnsight's simulation gives the same numbers, and a server without this package can run them."""

import subprocess
import sys
import textwrap

import torch

from interp.interventions import Ablate
from interp.models import forward


def test_the_simulation_gives_the_same_numbers(toy, remote_toy, mixed):
    assert (remote_toy.logits(mixed) == toy.logits(mixed)).all()
    ablated = [Ablate(site="resid_pre", layers=[2, 5], positions="image", value="mean")]
    torch.testing.assert_close(remote_toy.logits(mixed, ablated), toy.logits(mixed, ablated), atol=1e-5, rtol=0)
    assert remote_toy.generate(mixed, 4) == toy.generate(mixed, 4)
    assert remote_toy.check(mixed).passed


def test_a_server_without_this_package_can_read_what_is_sent(tmp_path):
    """The simulation does not catch a function that is sent by name, so one process sends and another, without it, reads."""
    send = """
        import sys, torch, interp
        from interp.models import forward, tower
        vlm = interp.load("toy", device="cpu", check=False)
        batch = vlm.prepare(texts=["where is the 3 ?"])
        rows, columns = batch.positions["last"].nonzero(as_tuple=True)
        edits = [forward.Edit("resid_pre", 2, forward.write, (rows, columns, torch.zeros(1, 128)))]
        edits += [forward.Edit(site, 3, forward.disturb) for site in ("v", "z")]
        reads = [forward.Read("mean", "attn_out", 3, forward.take_mean, (batch.positions["all"], None))]
        reads.append(forward.Read("patches", "vision_post", 1, tower.take_patches, (torch.tensor([0, 4]), None)))
        reads.append(forward.Read("z", "z", 3, forward.whole))
        steps = forward._schedule(vlm, 1, edits, reads)
        from interp.interventions import knockout, reweight, skip, values
        edits = [knockout.cut, knockout.drop, skip.go_around, values.put_states, values.add_states, reweight.reweigh]
        from nnsight.intervention.serialization import dumps
        functions = [(forward.follow, [step[1:] for step in steps], forward.shapes_of, edits, reweight.KINDS)]
        open(sys.argv[1], "wb").write(dumps(functions))
    """
    read = """
        import sys
        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "interp":
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Absent())
        import torch
        from nnsight.intervention.serialization import loads
        (follow, steps, shapes_of, edits, kinds), = loads(open(sys.argv[1], "rb").read())
        class Layer:
            input = output = torch.ones(1, 6, 128)
            def __len__(self):
                return 1
        saved = {}
        follow([(Layer, *step) for step in steps], saved)
        assert saved["mean"].shape == (1, 128), saved
        assert saved["patches"].shape == (2, 128), saved
        assert shapes_of({"layer": Layer()}) == {"layer": [([(1, 6, 128)], [(1, 6, 128)], False)]}
        assert saved["z"].shape == (1, 6, 4, 32), saved["z"].shape
        cut, drop, go_around, put_states, add_states, reweigh = edits
        allowed, weights = torch.ones(1, 1, 3, 3).bool().tril(), torch.ones(1, 3, 2, 3).tril()
        first, last = torch.tensor([[1, 0, 0]]).bool(), torch.tensor([[0, 0, 1]]).bool()
        assert not cut(allowed, 0, first, last, None, False)[0, 0, 2, 0]
        assert (drop(weights, 0, first, last, None, False)[0, 2, :, 0] == 0).all()
        for kind in kinds.values():
            assert reweigh(weights, allowed, 0, kind, 1).shape == weights.shape
        states, places = torch.ones(1, 3, 5), (torch.tensor([0]), torch.tensor([2]), None, torch.full((1, 5), 2.0))
        assert (go_around(states, states * 0, 0, last)[0, 2] == 0).all()
        assert (put_states(states, 0, *places)[0, 2] == 2).all()
        assert (add_states(states, 0, *places)[0, 2] == 3).all()
        assert "interp" not in sys.modules
    """
    blob = str(tmp_path / "sent")
    for script in (send, read):
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), blob], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_trace_is_sent_with_what_it_runs_and_no_more(remote_toy, mixed, monkeypatch):
    """A VLM that is named in a trace would take the whole package with it."""
    from nnsight.schema.request import RequestModel

    sent, own = [], RequestModel.serialize
    monkeypatch.setattr(
        RequestModel, "serialize", lambda *args, **kwargs: sent.append(own(*args, **kwargs)) or sent[-1]
    )
    read = [forward.Read(0, "resid_post", 1, forward.whole)]
    runs = {
        "forward": lambda: forward.run_forward(remote_toy, mixed, reads=read),
        "until reads": lambda: forward.run_until_reads(remote_toy, mixed.inputs, read),
        "for shapes": lambda: forward.run_for_shapes(remote_toy, mixed.inputs, [remote_toy.layers[0]]),
        "watched": lambda: forward.run_watched(remote_toy, mixed.inputs, [remote_toy.layers[0]]),
        "generate": lambda: forward.run_generate(remote_toy, mixed, [], max_new_tokens=1),
    }
    for name, run in runs.items():
        run()
        assert b"edits_of" not in sent.pop(), name
