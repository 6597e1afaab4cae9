"""Adapters on a band: on its linear modules and nowhere else, float32, and merged to the same logits."""

import pytest
import torch
from peft import LoraConfig

import interp
import zoo
from interp.models.adapters import merged_weights
from interp.tuning.trained_parts import trained_names
from interp.tuning.tuned_model import fingerprints, finished, tunable_model
from tuning_oracles import moved

BAND = range(2, 6)


def adapted(model):
    return {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}


@pytest.fixture(scope="module")
def rows(stage1, few):
    return stage1.prepare(texts=[scene.questions[0].prompt for scene in few], images=[scene.image for scene in few])


def test_a_rank_adapts_every_linear_module_of_the_band(stage1):
    model = tunable_model(stage1, trained_names(stage1, BAND), lora=8)
    path = stage1.structure.layers
    linear = {
        f"{path}.{layer}.{name}"
        for layer in BAND
        for name, part in stage1.model.get_submodule(path)[layer].named_modules()
        if isinstance(part, torch.nn.Linear)
    }
    assert adapted(model) == linear
    assert len(linear) == 4 * 7
    trained = {name for name, weights in model.named_parameters() if weights.requires_grad}
    assert all(".lora_" in name for name in trained)
    assert len(trained) == 2 * 4 * 7
    assert {model.get_parameter(name).shape[0] for name in trained if ".lora_A" in name} == {8}
    assert type(model) is type(stage1.model)
    theirs = dict(stage1.model.named_parameters())
    for name, weights in model.named_parameters():
        if name not in trained:
            assert weights.data_ptr() == theirs[name.replace(".base_layer", "")].data_ptr()


def test_merging_keeps_the_logits(stage1, rows):
    before, names = stage1.logits(rows), list(dict(stage1.model.named_parameters()))
    hashes = fingerprints(stage1.model, names)
    model = moved(tunable_model(stage1, trained_names(stage1, BAND, connector=True), lora=4))
    tuned = finished(model, stage1)
    with torch.no_grad():
        wanted = model(**stage1.inputs_of(rows)).logits[:, -1]
    torch.testing.assert_close(tuned.logits(rows), wanted, atol=1e-5, rtol=0)
    assert (wanted - before).abs().max() > 0.1
    assert tuned.name == "toy:stage1 tuned in layers 2 to 5 and connector"
    assert type(tuned.model.get_submodule(stage1.structure.layers)[2].mlp.up_proj) is torch.nn.Linear
    assert fingerprints(stage1.model, names) == hashes
    after = fingerprints(tuned.model, names)
    linear = {f"{name}.weight" for name in adapted(model)}
    assert {name for name in names if after[name] != hashes[name]} == linear | {
        *trained_names(stage1, (), connector=True)
    }
    # a layer's own weight keeps its name under an adapter
    frozen = [name for name in names if name not in trained_names(stage1, (), connector=True)]
    assert fingerprints(model, frozen) == {name: hashes[name] for name in frozen}
    assert list(finished(model, stage1).logits(rows)[0]) == list(tuned.logits(rows)[0])  # merging left the model alone


def test_the_connector_is_trained_in_full_beside_it(stage1):
    model = tunable_model(stage1, trained_names(stage1, 3, connector=True, head=True), lora=4)
    whole = {name for name, weights in model.named_parameters() if weights.requires_grad and ".lora_" not in name}
    assert whole == {*trained_names(stage1, (), connector=True, head=True)}
    assert len(adapted(model)) == 7


def test_a_config_counts_within_the_band_alone(stage1, rows):
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, use_rslora=True)
    model = moved(tunable_model(stage1, trained_names(stage1, BAND), lora=config))
    path = stage1.structure.layers
    assert adapted(model) == {f"{path}.{layer}.self_attn.{name}" for layer in BAND for name in ("q_proj", "v_proj")}
    assert config.target_modules == {"q_proj", "v_proj"}
    with torch.no_grad():
        wanted = model(**stage1.inputs_of(rows)).logits[:, -1]
    torch.testing.assert_close(finished(model, stage1).logits(rows), wanted, atol=1e-5, rtol=0)
    whole = f"{path}.3.self_attn.q_proj"
    config = LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj"],
        exclude_modules=[f"{path}.4.self_attn.q_proj"],
        rank_pattern={whole: 2},
        inference_mode=True,
    )
    model = tunable_model(stage1, trained_names(stage1, BAND), config)
    assert len(adapted(model)) == 7
    ranks = {name: len(each) for name, each in model.named_parameters() if ".lora_A" in name and each.requires_grad}
    assert ranks.pop(f"{whole}.lora_A.default.weight") == 2
    assert set(ranks.values()) == {4}
    assert config.rank_pattern == {whole: 2}
    pattern = LoraConfig(r=4, target_modules=r".*\.3\.mlp\..*")
    assert {name.rpartition(".mlp")[0] for name in adapted(tunable_model(stage1, trained_names(stage1), pattern))} == {
        f"{path}.3"
    }


@pytest.mark.parametrize("options", [{"use_dora": True}, {"init_lora_weights": "gaussian"}])
def test_variants_of_lora_are_merged_by_peft(stage1, rows, options):
    model = moved(tunable_model(stage1, trained_names(stage1, [2, 4]), lora=LoraConfig(r=4, **options)))
    with torch.no_grad():
        wanted = model(**stage1.inputs_of(rows)).logits[:, -1]
    torch.testing.assert_close(finished(model, stage1).logits(rows), wanted, atol=1e-4, rtol=0)


def test_half_precision(rows):
    """Adapters are float32 and work without autocast; they are merged in float32 and rounded once."""
    vlm = interp.load("toy:stage1", device="cpu", dtype=torch.bfloat16)
    model = moved(tunable_model(vlm, trained_names(vlm, BAND), lora=4))
    assert {weights.dtype for weights in model.parameters() if weights.requires_grad} == {torch.float32}
    model(**vlm.inputs_of(rows)).logits.float().sum().backward()
    assert all(weights.grad is not None for weights in model.parameters() if weights.requires_grad)
    tuned = finished(model, vlm)
    merged = merged_weights(model)
    assert {weights.dtype for weights in merged.values()} == {torch.float32}
    for name, weights in merged.items():
        assert torch.equal(tuned.model.get_parameter(name), weights.bfloat16())


@pytest.mark.parametrize(
    ("lora", "layers", "words"),
    [
        (0, 3, "lora=0: expected a rank, or a peft.LoraConfig; a rank is an int of 1 or more"),
        ("8", 3, "lora='8': expected a rank"),
        (True, 3, "lora=True: expected a rank"),
        (8, (), "lora=8 without a layer: expected layers= to name at least one"),
        (
            LoraConfig(target_modules=["q"]),
            3,
            r"lora targets \{'q'\} in layers \[3\], and no linear module there is that",
        ),
        (
            LoraConfig(modules_to_save=["lm_head"]),
            3,
            r"LoraConfig\(modules_to_save=.*\): expected none, layers=, connector=",
        ),
        (LoraConfig(target_parameters=["up_proj.weight"]), 3, "target_parameters"),
        (LoraConfig(target_modules=["q_proj"], layers_to_transform=[1]), 3, "layers_to_transform"),
        (LoraConfig(bias="all"), 3, r"LoraConfig\(bias='all', lora_bias=False\): expected 'none' and False"),
        (LoraConfig(lora_bias=True), 3, "lora_bias=True"),
        (LoraConfig(r=0), 3, r"PEFT cannot make these adapters \(.*r.* should be a positive integer"),
        (LoraConfig(init_lora_weights="pissa"), 3, "init_lora_weights='pissa' changes the weights under the adapters"),
    ],
)
def test_what_is_refused(stage1, lora, layers, words):
    before = fingerprints(stage1.model, [name for name, _ in stage1.model.named_parameters()])
    with pytest.raises(interp.InputError, match=words) as caught:
        tunable_model(stage1, trained_names(stage1, layers, connector=True), lora)
    assert "\n" not in str(caught.value)
    assert fingerprints(stage1.model, list(before)) == before


@pytest.mark.parametrize("name", ["qwen2_5_vl", "deepseek_v3", "llama4", "glm4v_moe", "gpt_oss"])
def test_any_architecture(name):
    """Experts that are one tensor, and routers with several outputs, have no adapter; all others of the band have one."""
    vlm = interp.load(model=zoo.build(name), check=False)
    rows = vlm.prepare(encoding=zoo.encode(name))
    model = moved(tunable_model(vlm, trained_names(vlm, [1]), lora=2))
    assert adapted(model)
    assert all(each.startswith(f"{vlm.structure.layers}.1.") for each in adapted(model))
    with torch.no_grad():
        wanted = model(**vlm.inputs_of(rows)).logits[:, -1]
    torch.testing.assert_close(finished(model, vlm).logits(rows), wanted, atol=1e-5, rtol=1e-4)


def test_a_layer_without_a_linear_module():
    vlm = interp.load(model=zoo.build("gpt2"), check=False)
    with pytest.raises(interp.InputError, match=r"expected one that they have \(none at all\)"):
        tunable_model(vlm, trained_names(vlm, 1), lora=2)
