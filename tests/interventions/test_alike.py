"""What holds for all interventions alike: none changes no bit, each is the same wherever it is taken and on a server, and
what cannot be is refused before the model runs."""

import contextlib
import copy
import dataclasses

import pytest
import torch

import interp
from interp import interventions
from interp.interventions import Ablate, Knockout, Patch, Project, Reweight, Scale, Skip, Steer, Truncate
from interp.lens import logit_lens
from patterned import BOTH, KINDS, batch_of, load


def captured(vlm, batch, site, **options):
    return interp.capture(vlm, [batch], sites=(site,), positions="text", progress=False, **options)


def direction(seed=0):
    return torch.randn(128, generator=torch.Generator().manual_seed(seed))


# Each intervention in each of its ways, made for a model and a batch of three rows.
EACH = {
    "patch a tensor": lambda vlm, batch: Patch(site="resid_mid", layers=[2, 4], positions="last", value=direction()),
    "patch heads": lambda vlm, batch: Patch(site="z", layers=4, positions=[1, -1], value=torch.ones(32), heads=[0, 3]),
    "patch a batch": lambda vlm, batch: Patch(site="resid_post", layers=3, positions=[2, -1], value=batch.row(1)),
    "patch activations": lambda vlm, batch: Patch(
        site="mlp_out", layers=[1, 5], positions="text", value=captured(vlm, batch, "mlp_out")
    ),
    "ablate zero": lambda vlm, batch: Ablate(site="attn_out", layers=[1, 5], positions="text"),
    "ablate mean": lambda vlm, batch: Ablate(site="k", layers=[1, 2], positions="image", value="mean", heads=[0, 3]),
    "ablate mean by position": lambda vlm, batch: Ablate(
        site="resid_pre", layers=3, positions=[1, -1], value="mean", by=("position", ["one", "two", "one"])
    ),
    "ablate resample": lambda vlm, batch: Ablate(
        site="resid_pre", layers=2, positions="last", value="resample", seed=1
    ),
    "ablate a tensor": lambda vlm, batch: Ablate(site="v", layers=3, positions="all", value=torch.ones(32), heads=1),
    "ablate a data set": lambda vlm, batch: Ablate(
        site="resid_pre", layers=0, positions="image", value=captured(vlm, batch, "resid_pre", reduce="none")
    ),
    "knockout": lambda vlm, batch: Knockout(source="image", target="after_image", layers="all"),
    "knockout of heads": lambda vlm, batch: Knockout(source="image", target="last", layers=[2, 5], heads=[0, 3]),
    "knockout after the softmax": lambda vlm, batch: Knockout(
        source="image", target="last", layers=[2, 5], heads=[0, 3], mode="post_softmax"
    ),
    "skip": lambda vlm, batch: Skip(layers=[2, 3], positions="image"),
    "truncate": lambda vlm, batch: Truncate(positions="image", from_layer=3),
    "steer": lambda vlm, batch: Steer(direction=direction(), layers=5, positions=[-1], scale=2),
    "steer heads": lambda vlm, batch: Steer(
        direction=torch.ones(32), layers=5, positions="text", scale=2, site="q", heads=2
    ),
    "scale heads": lambda vlm, batch: Scale(layers=[2, 5], positions="all", factor=-1, heads=[0, 3]),
    "project": lambda vlm, batch: Project(direction=torch.stack([direction(), direction(1)]), layers=5, positions=[-1]),
    "project heads": lambda vlm, batch: Project(
        direction=torch.ones(32), layers=[2, 5], positions="text", site="z", heads=2
    ),
    **{
        f"reweight {kind}": lambda vlm, batch, kind=kind: Reweight(kind=kind, layers=[1, 4])
        for kind in ("uniform", "random", "reversed", "shuffled")
    },
}


@contextlib.contextmanager
def passes_of(vlm):
    """The forward passes of a model inside."""
    seen = []
    handle = vlm.model.register_forward_pre_hook(lambda *_: seen.append("pass"))
    try:
        yield seen
    finally:
        handle.remove()


def takers(vlm, batch):
    """All that take interventions, by name."""
    return {
        "logits": lambda change: vlm.logits(batch, [change]),
        "generate": lambda change: vlm.generate(batch, max_new_tokens=2, interventions=[change]),
        "capture": lambda change: interp.capture(
            vlm, [batch], positions="last", interventions=[change], progress=False
        ),
        "lens": lambda change: logit_lens(vlm, batch, positions="last", interventions=[change]),
    }


EXPORTED = [kind for name in interventions.__all__ if hasattr(kind := getattr(interventions, name), "edits")]


# The table -----------------------------------------------------------------------------------------------------------------


def test_every_exported_intervention_is_in_the_table(toy, mixed):
    """A new intervention gets a row in EACH, and one in _SOUND with the fields that can be wrong."""
    assert len(EXPORTED) >= 9
    assert all(dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen for kind in EXPORTED)
    assert {type(make(toy, mixed)) for make in EACH.values()} == set(EXPORTED) == set(_SOUND)
    for kind in EXPORTED:
        assert set(kind.__dataclass_fields__) <= set(_WRONG), kind


# None --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("name", "how"), [*((name, "eager") for name in KINDS), *((name, "sdpa") for name in BOTH)])
def test_none_is_transformers_own_run_to_the_bit(name, how, padded):
    vlm, batch = load(name, how), batch_of(name, padded)
    with torch.no_grad():
        own = vlm.model(**vlm.inputs_of(batch)).logits
    assert torch.equal(vlm.logits(batch, [], positions="all"), own)
    assert torch.equal(vlm.logits(batch, []), vlm.logits(batch))


# Each --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", EACH)
def test_it_is_the_same_wherever_it_is_taken(toy, mixed, each):
    """The states of a capture, read with the model's own norm and head, are what the lens reads, and the last of them the
    logits, the first new token with them."""
    change = EACH[each](toy, mixed)
    logits = toy.logits(mixed, [change])
    assert not torch.allclose(logits, toy.logits(mixed), atol=1e-4)
    acts = interp.capture(toy, [mixed], positions="last", reduce="none", interventions=[change], progress=False)
    norm, head = (toy.model.get_submodule(path) for path in (toy.structure.norm, toy.structure.head))
    with torch.no_grad():
        read = head(norm(acts["resid"][...]))
    torch.testing.assert_close(read[-1], logits, atol=1e-5, rtol=1e-5)
    size = toy.structure.vocab_size
    lens = logit_lens(toy, mixed, positions="last", top_k=size, interventions=[change])
    torch.testing.assert_close(lens.top_probs, read.softmax(dim=-1).gather(-1, lens.top_ids), atol=1e-5, rtol=1e-5)
    first = [toy.tokenizer.decode([token], skip_special_tokens=True) for token in logits.argmax(dim=-1)]
    assert toy.generate(mixed, max_new_tokens=1, interventions=[change]) == first


@pytest.mark.parametrize("each", EACH)
def test_it_can_be_sent(toy, remote_toy, mixed, each):
    """Through nnsight's simulation of a server; what it is made of is captured there too."""
    ours, theirs = (vlm.logits(mixed, [EACH[each](vlm, mixed)]) for vlm in (toy, remote_toy))
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert not torch.allclose(ours, toy.logits(mixed), atol=1e-4)


@pytest.mark.parametrize("taker", ["logits", "generate", "capture", "lens"])
@pytest.mark.parametrize("each", ["knockout after the softmax", "reweight uniform"])
def test_a_server_is_not_asked_for_weights_that_it_does_not_hold(toy, mixed, each, taker):
    change, away = EACH[each](toy, mixed), copy.copy(toy)
    away.remote = True
    with (
        passes_of(toy) as passes,
        pytest.raises(interp.InputError, match="runs on a server, where attention is 'sdpa'") as caught,
    ):
        takers(away, mixed)[taker](change)
    assert "\n" not in str(caught.value)
    assert not passes


# What is refused ---------------------------------------------------------------------------------------------------------

# An intervention of each class that could be made, and which of its fields say where it acts.
_SOUND = {
    Patch: {"site": "resid_pre", "layers": 0, "positions": "last", "value": torch.zeros(128)},
    Ablate: {"site": "resid_pre", "layers": 0, "positions": "last"},
    Steer: {"direction": torch.ones(128), "layers": 0, "positions": "last", "scale": 1.0},
    Project: {"direction": torch.ones(128), "layers": 0, "positions": "last"},
    Scale: {"factor": 2.0, "layers": 0, "positions": "last"},
    Skip: {"layers": 0, "positions": "last"},
    Truncate: {"from_layer": 0, "positions": "image"},
    Knockout: {"source": "image", "target": "last", "layers": 0},
    Reweight: {"kind": "uniform", "layers": 0},
}
_WRONG = {
    "site": [
        ("hook_z", "site='hook_z' is unknown"),
        ("pattern", "site='pattern' is unknown"),
        (None, "site=None is unknown"),
    ],
    "layers": [
        (8, "layer 8: 'toy' has layers 0 to 7"),
        ([0, -9], "layer -9: 'toy' has layers"),
        ([], "names no layer"),
    ],
    "from_layer": [(8, "layer 8: 'toy' has layers 0 to 7"), (0.5, "from_layer=0.5: expected an int")],
    "positions": [("picture", "'picture' is unknown"), ([400], r"position 400: row 0 .*has"), ([], "selects nothing")],
    "source": [
        ("picture", "'picture' is unknown"),
        ([400], r"position 400: row 0 .*has"),
        ([], r"source=\[\] selects nothing"),
    ],
    "target": [("picture", "'picture' is unknown"), (range(0), r"target=range\(0, 0\) selects nothing")],
    "value": [
        (torch.zeros(7), r"value of shape \(7,\) does not fit \(1, [36]+, 128\)"),
        (3, "value is a int: expected a"),
    ],
    "direction": [
        (torch.zeros(7), r"direction of shape \(7,\) does not fit"),
        ([1], "direction is a list"),
        (torch.ones(128, dtype=torch.complex64), "direction is of torch.complex64: expected real"),
    ],
    "self_edges": [("no", "self_edges='no': expected True or False")],
    "scale": [(float(value), f"scale={value}: expected a finite number") for value in ("nan", "inf", "-inf")],
    "factor": [(float("nan"), "factor=nan: expected a finite number")],
    "heads": [([], r"heads=\[\]"), (4, "heads=4: resid_pre has no heads|head 4: layer 0")],
    "kind": [
        ("flat", "kind='flat' is unknown: use one of uniform, random, reversed, shuffled"),
        (["uniform"], r"kind=\['uniform'\] is unknown: use one of"),
    ],
    "mode": [("softmax", "mode='softmax' is unknown: use one of pre_softmax, post_softmax")],
    "tower": [("ear", "tower='ear' is unknown: use one of language, vision")],
    "by": [("rows", "by='rows' with value='zero': only a mean has groups"), ([0], "only a mean has groups")],
    "seed": [("0", "seed='0': expected an int of 0 or more"), (-1, "seed=-1: expected")],
}
# Fields with a default that are tried on every intervention that has them.
OPTIONAL = ("value", "heads", "by", "seed", "self_edges", "mode", "tower")
_CASES = [
    (kind, name, wrong, words)
    for kind, sound in _SOUND.items()
    for name, each in _WRONG.items()
    for wrong, words in each
    if name in sound or (name in kind.__dataclass_fields__ and name in OPTIONAL)
]


@pytest.mark.parametrize("taker", ["logits", "generate", "capture", "lens"])
def test_what_is_wrong_is_one_line_before_the_model_runs(toy, mixed, taker):
    take = takers(toy, mixed)[taker]
    for kind, sound in _SOUND.items():
        with passes_of(toy) as passes:
            take(kind(**sound))
        assert passes
    with passes_of(toy) as passes:
        for kind, name, wrong, words in _CASES:
            with pytest.raises(interp.InterpError, match=words) as caught:
                take(kind(**{**_SOUND[kind], name: wrong}))
            assert "\n" not in str(caught.value), (kind, name, wrong)
    assert not passes


@pytest.mark.parametrize(
    "change",
    [
        Knockout(source="image", target="last", layers="all"),
        Knockout(source="image", target="last", layers=[3, 0], mode="post_softmax"),
        Truncate(positions="image", from_layer=0),
        Reweight(kind="uniform", layers=0),
    ],
)
def test_a_layer_without_softmax_attention_has_no_edges(change):
    vlm, batch = load("qwen3_5"), batch_of("qwen3_5", padded=True)
    words = r"layer 0 of .* has 'linear' in place of softmax.*layers=\[3\]"
    with passes_of(vlm) as passes, pytest.raises(interp.InputError, match=words) as caught:
        vlm.logits(batch, [change])
    assert "\n" not in str(caught.value)
    assert not passes
