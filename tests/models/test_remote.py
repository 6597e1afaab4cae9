"""Traces that are shipped: nnsight's simulation gives the same numbers, and a server without this package can run them."""

import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import torch

from interp.interventions import Ablate
from interp.models.running import gradients, trace
from interp.models.running.steps import Read, whole
from interp.patching import logit_difference, patch_sweep


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
        from interp.models.layout import patches
        from interp.models.running import steps, trace
        vlm = interp.load("toy", device="cpu", check=False, remote="local")
        batch = vlm.prepare(texts=["where is the 3 ?"])
        rows, columns = batch.positions["last"].nonzero(as_tuple=True)
        edits = [steps.Edit("resid_pre", 2, steps.write, (rows, columns, torch.zeros(1, 128)))]
        edits += [steps.Edit(site, 3, steps.disturb) for site in ("v", "z")]
        reads = [steps.Read("mean", "attn_out", 3, steps.take_mean, (batch.positions["all"], None))]
        reads.append(steps.Read("patches", "vision_post", 1, patches.take_patches, (torch.tensor([0, 4]), None)))
        reads.append(steps.Read("z", "z", 3, steps.whole))
        from dataclasses import replace
        scheduled = [replace(step, envoy=None) for step in steps.schedule(vlm, 1, edits, reads)]
        from interp.interventions import knockout, replacement, reweight, writes
        edits = [knockout.cut, knockout.drop, replacement.go_around, writes.put_states, writes.add_states, reweight.reweigh]
        from interp.models.running import gradients, readout, replay, resume
        from interp.patching import attribution_patching, right_rows
        backward = [gradients.with_zero, gradients.go_back, attribution_patching.first_order_change]
        backward += [right_rows.measure_rows, attribution_patching.PositionsOfCells, gradients.GradientRead]
        from nnsight.intervention.serialization import dumps
        functions = [(steps.follow, scheduled, trace.shapes_of, edits, reweight.KINDS, backward)]
        from functools import partial
        from interp.patching import metrics
        from interp.models.running.slots import Argument
        signature = replay.Signature(Argument("past_key_values", 2), Argument("attention_mask", 1), True)
        prefers = partial(metrics.apply_rule, rule=metrics.difference_of, references=(torch.tensor(1), torch.tensor(0)))
        reading = readout.Readout, readout.LogitScaling(2.0, 30.0, (1,))
        one, two = torch.tensor([1]), {0: torch.tensor([[9.0, 2.0]])}
        versions = resume.Versions("resid_pre", [resume.Cell(0, 0)], [one], one, two)
        functions.append((replay.Cache(), replay.Run, signature, resume.measure_versions, prefers, *reading, versions))
        sys.path.insert(0, sys.argv[2])
        from slot_cases import cases
        functions.append({name: tuple(case) for name, case in cases().items()})
        from interp.models.running import greedy
        functions.append(greedy.greedy_options(vlm, 3, eos_token_id=5))
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
        from dataclasses import replace
        from types import SimpleNamespace
        sent, resumed, slots, options = loads(open(sys.argv[1], "rb").read())
        cache, Run, signature, measure_versions, prefers, Readout, scaling, versions = resumed
        follow, steps, shapes_of, edits, kinds, backward = sent
        class Layer:
            input = output = torch.ones(1, 6, 128)
            def __len__(self):
                return 1
        saved = {}
        follow([replace(step, envoy=Layer) for step in steps], saved)
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


        def summing(hidden_states, attention_mask=None, past_key_values=None):  # a layer that adds all values before
            values, _ = past_key_values.update(hidden_states[:, None], hidden_states[:, None], 0)
            return hidden_states + values.cumsum(dim=2)[:, 0, -hidden_states.shape[1]:]

        states, identity = torch.arange(8.0).reshape(1, 4, 2), lambda given: given
        call = (states,), {"past_key_values": cache}
        seen = {("call", 0): call, ("enters", 0): states, ("leaves", 0): summing(states, past_key_values=cache)}
        seen["own", 0] = states[0, [1]]
        run, readout = Run({0: summing}, {0: signature}, {}, seen, cache.keys), Readout(identity, identity, 2)
        values = measure_versions(run, readout, prefers, torch.zeros(1), versions)
        states[0, 1] = torch.tensor([9.0, 2.0])
        assert values == prefers(states[:, -1] + states.sum(dim=1)), values
        capped = Readout(identity, identity, 2, scaling).without_norm().logits(torch.tensor([[3.0, 4.0]]))
        assert capped[0, 0] == 30 * torch.tanh(torch.tensor(6.0 / 30)) and capped[0, 1] < -1e38
        with_zero, go_back, first_order_change, measure_rows, PositionsOfCells, GradientRead = backward
        held, saved, one, second = {}, {}, torch.tensor([0]), torch.tensor([1])
        value = with_zero(torch.ones(1, 2, 3), held, 0)
        logits = (value * torch.tensor([1.0, 2.0, 3.0])).sum(dim=(1, 2))[:, None]
        measured = measure_rows(logits, [lambda logits: logits[:, 0]])
        arguments = torch.full((1, 3), 2.0), PositionsOfCells(one, second, one, 1, None)
        go_back(measured, held, [GradientRead("moved", "z", 0, first_order_change, arguments)], saved)
        assert saved["moved"].tolist() == [6.0], saved

        def near(a, b):
            return torch.allclose(a.float(), b.float(), atol=1e-6) if isinstance(a, torch.Tensor) else a == b

        assert len({type(slot).__name__ for slot, *_ in slots.values()}) == 11
        for name, (slot, content, context, value, other, seen) in slots.items():
            module = SimpleNamespace(**content)
            whole, found = slot.take(module, context)
            assert near(found, value), name
            if other is not None:
                slot.put(module, context, whole, found, other)
                assert not seen or name == "call" or near(slot.take(module, context)[1], other), name
        assert slots["mid"][0].for_rows(5).added.rows == 5 and slots["heads"][0].side == "input"
        import copy
        from transformers import GenerationConfig
        config, odd = copy.deepcopy(options["generation_config"]), GenerationConfig(suppress_tokens=[3], min_length=9)
        config.update(**odd.to_dict(), defaults_only=True, allow_custom_entries=True)
        assert config.suppress_tokens is None and config.eos_token_id == 5 and config.max_new_tokens == 3
        assert config.update(pixel_values=1) == {"pixel_values": 1}
        (as_they_are,) = options["logits_processor"]
        assert as_they_are(None, torch.ones(1, 2)).sum() == 2
        assert "interp" not in sys.modules
    """
    blob = str(tmp_path / "sent")
    for script in (send, read):
        command = [sys.executable, "-c", textwrap.dedent(script), blob, str(Path(__file__).parents[1])]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_trace_is_sent_with_what_it_runs_and_no_more(remote_toy, mixed, monkeypatch):
    """A VLM that is named in a trace would take the whole package with it."""
    from nnsight.schema.request import RequestModel

    sent, own = [], RequestModel.serialize
    monkeypatch.setattr(
        RequestModel, "serialize", lambda *args, **kwargs: sent.append(own(*args, **kwargs)) or sent[-1]
    )
    read = [Read(0, "resid_post", 1, whole)]
    pair = [remote_toy.prepare(texts=[f"a {colour} 3 at top . what colour is the 3 ?"]) for colour in ("red", "blue")]
    runs = {
        "forward": lambda: trace.run_forward(remote_toy, mixed, reads=read),
        "until reads": lambda: trace.run_until_reads(remote_toy, mixed.inputs, read),
        "for shapes": lambda: trace.run_for_shapes(remote_toy, mixed.inputs, [remote_toy.layers[0]]),
        "for visits": lambda: trace.run_for_visits(remote_toy, mixed.inputs, [remote_toy.layers[0]]),
        "sweep": lambda: patch_sweep(remote_toy, *pair, positions=[5], metric=logit_difference(3, 4)),
        "gradients": lambda: gradients.run_gradients(
            remote_toy,
            mixed,
            partial(torch.select, dim=1, index=5),
            [gradients.GradientRead(0, "resid_post", 1, torch.mul)],
        ),
        "generate": lambda: trace.run_generate(remote_toy, mixed, [], max_new_tokens=1),
    }
    for name, run in runs.items():
        run()
        assert b"edits_of" not in sent.pop(), name
