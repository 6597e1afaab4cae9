"""Equal plans mean equal activations: what is described must tell values apart."""

import copy

import numpy as np
import torch

import interp
from interp.activations.plan import fingerprint_of_weights, one_line
from interp.interventions import Ablate, Knockout, Patch


def test_interventions_are_told_apart_by_what_they_hold(toy):
    batch = toy.prepare(texts=["a red 3", "a blue 7"])
    made = [
        *(Patch(site="resid_pre", layers=1, positions="image", value=torch.full((4,), v)) for v in (1.0, 2.0)),
        Patch(site="resid_pre", layers=[1, 2], positions="image", value=torch.full((4,), 1.0)),
        *(Patch(site="resid_pre", layers=1, positions="image", value=batch.row(row)) for row in (0, 1)),
        Ablate(site="resid_pre", layers=1, positions=np.array([[True, False]])),
        Ablate(site="resid_pre", layers=1, positions=np.array([[True, True]])),
        Knockout(source="image", target="last", layers=range(3)),
        Knockout(source="image", target="last", layers=(0, 1, 2)),
        *(Ablate(site="resid_pre", layers=layers, positions="image") for layers in ({1, 2}, {1, 3})),
        *(Ablate(site="resid_pre", layers=np.int64(layer), positions="image") for layer in (1, 2)),
    ]
    said = [one_line(each) for each in made]
    assert len(set(said)) == len(made)
    assert said == [one_line(copy.deepcopy(each)) for each in made]
    assert all("\n" not in each and "0x" not in each for each in said)
    assert one_line(object()) == "builtins.object"
    assert one_line(torch.nn.functional.relu).endswith("relu")


def test_activations_are_told_apart_by_what_they_hold_alone(toy, tmp_path):
    """Not by the time that capturing them took: a script that is run again makes an equal value."""
    data = [(None, "a red 3"), (None, "a blue 7")]
    options = {"positions": "text", "progress": False}
    made = [interp.capture(toy, data, out=out, **options) for out in (None, None, tmp_path / "acts")]
    assert len({one_line(each) for each in made}) == 1
    parts = [made[0], made[0].select(rows=[0]), made[0].select(rows=[1]), made[0].select(layers=[1])]
    assert len({one_line(each) for each in parts}) == 4
    assert len(one_line(made[0])) < 200


def test_weights_of_another_type_are_others(toy):
    """The toy's weights lie in bfloat16, so in float32 their numbers are the same; what they compute is not."""
    half = copy.deepcopy(toy.model).to(torch.bfloat16)
    assert fingerprint_of_weights(half) != fingerprint_of_weights(half.float())


def test_weights_are_told_apart(toy):
    """A change anywhere in a weight is seen when it is as broad as training makes it."""
    model = copy.deepcopy(toy.model)
    before = fingerprint_of_weights(model)
    assert before == fingerprint_of_weights(toy.model)
    with torch.no_grad():
        model.get_submodule(toy.structure.layers)[3].self_attn.q_proj.weight.add_(1e-3)
    assert fingerprint_of_weights(model) != before
    assert fingerprint_of_weights(model.to("meta")) is None


def test_the_manifest_says_what_ran(toy):
    acts = interp.capture(toy, [(None, "a red 3")], positions=[0, -1], reduce="none", progress=False)
    assert (acts.manifest["attention"], acts.manifest["positions"]) == ("sdpa", "[0, -1]")


def test_the_manifest_says_that_an_intervention_made_attention_eager(toy):
    for mode, ran in (("pre_softmax", "sdpa"), ("post_softmax", "eager")):
        cut = Knockout(source=[0], target="last", layers=3, mode=mode)
        acts = interp.capture(toy, [(None, "a red 3")], positions="last", interventions=[cut], progress=False)
        assert acts.manifest["attention"] == ran
