"""Every architecture, tiny and random: found, proved, captured, read out, patched and cut, against transformers itself."""

import re
from pathlib import Path

import pytest
import torch

import interp
import zoo
from interp.interventions import Knockout, Patch
from interp.models.architectures import architectures, language_models
from interp.models.running.masks import PATTERNED
from interp.models.running.trace import run_generate
from zoo.table import PAGE, as_page, batch, load, report, tabulate

TABLE = {row.name: row for row in (*architectures(), *language_models())}
README = Path(__file__).parents[2] / "README.md"
SUPPORTED = [name for name, row in TABLE.items() if row.verdict == "supported"]
PICTURED = [name for name in SUPPORTED if TABLE[name].takes_images]
TEXTS = [name for name in SUPPORTED if not TABLE[name].takes_images]
# In these transformers lists the states that leave layers, and not the one that enters the first.
LEAVING_ALONE = ("mamba",)
REFUSED = [name for name, row in TABLE.items() if row.verdict == "refused"]


def decoder_layers(name):
    return load(name).model.get_submodule(load(name).structure.layers)


def run(name, layer=None, edit=None):
    """transformers' own forward pass, with what enters one layer edited by a plain hook."""
    vlm = load(name)

    def hook(_, args, kwargs):
        key = next(iter(kwargs), None) if not args else None
        state = edit(args[0] if args else kwargs[key])
        return ((state, *args[1:]), kwargs) if args else (args, {**kwargs, key: state})

    handles = [] if layer is None else [decoder_layers(name)[layer].register_forward_pre_hook(hook, with_kwargs=True)]
    try:
        with torch.no_grad():
            return vlm.model(**vlm.inputs_of(batch(name)), output_hidden_states=True)
    finally:
        for handle in handles:
            handle.remove()


def hidden_states(output):
    states = getattr(output, "hidden_states", None)
    return states or output.language_model_outputs.hidden_states


def test_the_table_is_what_the_zoo_shows():
    rows = tabulate()
    assert {row.name: row for row in rows} == TABLE
    versions = r"transformers [\d.]+"  # the page names the one it was made with
    assert re.sub(versions, "", as_page(rows)) == re.sub(versions, "", PAGE.read_text())


def test_enough_architectures_are_supported():
    assert len(PICTURED) >= 65
    assert len(TEXTS) >= 10
    assert {*zoo.NAMES, *zoo.TEXTS} == set(TABLE)
    readme = " ".join(README.read_text().split())
    assert f"Of the {len(zoo.NAMES)} image-text-to-text architectures of transformers {len(PICTURED)} pass" in readme


@pytest.mark.parametrize("name", SUPPORTED)
def test_every_proof_holds(name):
    frame = report(name).to_frame()
    assert set(frame["outcome"]) == {"passed"}, frame[frame["outcome"] != "passed"].to_string()


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_one_line_that_says_why(name):
    """At load, or for what only an image shows, by the report on the first batch with one."""
    try:
        load(name)
    except interp.LayoutError as error:
        said = re.sub(r"failed the proof '(\w+)'", r"\1", str(error))
    else:
        said = "; ".join(f"{check.name}: {check.detail}" for check in report(name).checks if check.outcome == "failed")
    assert "\n" not in said
    assert TABLE[name].why
    assert TABLE[name].why in said


@pytest.mark.parametrize("name", TEXTS)
def test_a_language_model_alone_has_no_image(name):
    vlm, rows = load(name), batch(name)
    structure = vlm.structure
    assert not vlm.takes_images
    assert (structure.vision, structure.blocks, structure.projector, structure.image_token_id) == (None,) * 4
    assert "image" not in set(report(name).to_frame()["name"])
    assert not rows.positions["image"].any()
    assert torch.equal(rows.positions["after_image"], rows.positions["all"])
    for site in ("vision", "projector"):
        with pytest.raises(interp.LayoutError, match=f"has no .*site {site}"):
            interp.capture(vlm, [rows], sites=site, progress=False)
    with pytest.raises(interp.InputError, match=r"takes no image, pass positions='text'"):
        interp.capture(vlm, [rows], progress=False)


@pytest.mark.parametrize("name", PICTURED)
def test_image_positions_are_the_image_tokens(name):
    vlm, rows = load(name), batch(name)
    image = rows.positions["image"]
    assert image.any(dim=1).all()
    if vlm.structure.image_token_id is not None:
        assert torch.equal(image, rows.inputs["input_ids"] == vlm.structure.image_token_id)
    kinds = torch.stack([rows.positions[kind] for kind in ("image", "text", "special", "padding")])
    assert (kinds.sum(dim=0) == 1).all()
    assert rows.positions["last"][:, -1].all()


@pytest.mark.parametrize("name", SUPPORTED)
def test_captured_states_are_transformers_hidden_states(name):
    vlm, rows = load(name), batch(name)
    acts = interp.capture(vlm, [rows], positions="all", reduce="none", progress=False)["resid"][...]
    theirs = hidden_states(run(name))
    real = rows.positions["all"]
    assert acts.shape[0] == vlm.structure.n_layers + 1
    of_both = acts[1:] if name in LEAVING_ALONE else acts[:-1]
    for ours, wanted in zip(of_both, theirs[:-1], strict=True):
        torch.testing.assert_close(ours, wanted[real].float(), rtol=1e-5, atol=1e-5)
    # transformers' last one is final-normed
    with torch.no_grad():
        normed = vlm.model.get_submodule(vlm.structure.norm)(acts[-1])
    torch.testing.assert_close(normed, theirs[-1][real].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_lens_on_the_last_state_gives_the_logits(name):
    vlm, rows = load(name), batch(name)
    report(name)  # some have their readout proved on a picture alone
    read = interp.lens.logit_lens(vlm, rows, positions="last", top_k=vlm.structure.vocab_size)
    probs = torch.zeros(len(rows), vlm.structure.vocab_size).scatter(1, read.top_ids[-1], read.top_probs[-1])
    wanted = vlm.logits(rows).float().log_softmax(dim=-1)
    said = wanted > -80  # some models overwrite logits with the lowest number
    torch.testing.assert_close(probs[said].log(), wanted[said], rtol=0, atol=1e-4)
    assert (probs[~said] == 0).all()
    assert (read.kl[-1] == 0).all()
    assert (read.kl >= -1e-5).all()


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_patch_is_what_a_hook_would_do(name):
    vlm, rows = load(name), batch(name)
    layer, width = 1, vlm.structure.d_model
    place = rows.positions["last_image" if vlm.takes_images else "last"]
    patch = Patch(site="resid_pre", layers=layer, positions=place, value=torch.full((width,), 0.5))
    ours = vlm.logits(rows, interventions=[patch], positions="all")
    theirs = run(name, layer, lambda state: torch.where(place[..., None], torch.tensor(0.5), state)).logits
    real = rows.positions["all"]
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-4, atol=1e-4)
    assert (ours - vlm.logits(rows, positions="all"))[real].abs().max() > 1e-4


@pytest.mark.parametrize("name", [name for name in SUPPORTED if {*TABLE[name].attention} & {*PATTERNED}])
def test_a_knockout_reaches_its_targets_alone(name):
    vlm, rows = load(name), batch(name)
    layer = max(index for index, kind in enumerate(vlm.structure.attention) if kind in PATTERNED)
    source, kind = ("image", "after_image") if vlm.takes_images else ([0, 1], "last")
    cut = Knockout(source=source, target=kind, layers=layer)
    states = [
        interp.capture(
            vlm, [rows], sites="resid_post", positions="all", reduce="none", interventions=edits, progress=False
        )
        for edits in ([], [cut])
    ]
    before, after = (acts["resid_post"][...][layer] for acts in states)
    moved = (before - after).abs().amax(dim=-1) > 1e-4 * before.abs().max()
    target = rows.positions[kind][rows.positions["all"]]
    assert moved[target].any()
    assert not moved[~target].any()


@pytest.mark.parametrize("name", SUPPORTED)
def test_generation_is_transformers_own(name, toy):
    """Any tokenizer will do: ids are compared."""
    vlm, rows = interp.load(model=zoo.build(name), processor=toy.processor, device="cpu", check=False), batch(name)
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        theirs = vlm.model.generate(**vlm.inputs_of(rows), **options)
    assert torch.equal(run_generate(vlm, rows, [], **options), theirs)
