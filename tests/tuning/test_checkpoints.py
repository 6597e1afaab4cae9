"""What is written is what was trained, bit for bit, for transformers, PEFT and this package; and whole, or not at all."""

import copy
import json
import os
import signal

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
)

import interp
import zoo
from interp import files
from interp.tuning.checkpoints import check_folder, write_checkpoint
from interp.tuning.trained_parts import trained_names
from interp.tuning.tuned_model import finished, tunable_model
from tuning_oracles import moved


def exact(vlm, rows):
    """The logits of a copy, whose weights lie in memory as those of any other copy: bits depend on that."""
    return copy.deepcopy(vlm).logits(rows)


def texts_of(folder):
    return {path.name: path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def rows(stage1, few):
    return stage1.prepare(texts=[scene.questions[0].prompt for scene in few], images=[scene.image for scene in few])


@pytest.fixture(scope="module")
def tuned(stage1):
    return finished(moved(tunable_model(stage1, trained_names(stage1, range(2, 6), connector=True, head=True))), stage1)


def test_a_checkpoint_is_the_model_bit_for_bit(tuned, rows, tmp_path):
    out = tmp_path / "above" / "out"
    tuned.processor.chat_template = "{% for m in messages %}{{ m.content[0].text }}{% endfor %}"
    try:
        write_checkpoint(tuned, out)
        processor = AutoProcessor.from_pretrained(out)
        assert processor.chat_template == tuned.processor.chat_template
    finally:
        tuned.processor.chat_template = None
    assert processor.tokenizer.get_vocab() == tuned.tokenizer.get_vocab()
    again = interp.load(out, device="cpu")
    assert again.name == "out"
    assert torch.equal(exact(again, rows), exact(tuned, rows))
    assert again.check(rows).passed
    assert again.generate(rows, 2) == tuned.generate(rows, 2)
    plain = AutoModelForImageTextToText.from_pretrained(out)
    assert isinstance(plain, LlavaForConditionalGeneration)
    for name, weights in plain.state_dict().items():
        assert torch.equal(weights, tuned.model.state_dict()[name])
    assert plain.generation_config.eos_token_id == tuned.model.generation_config.eos_token_id
    assert not list(out.glob(".*"))


def test_a_model_from_a_folder_leaves_no_path_of_it(stage1, tmp_path):
    """Folders name their owners; what is written names the last part at most."""
    folder = tmp_path / "secret" / "mine"
    write_checkpoint(stage1, folder)
    vlm = interp.load(folder, device="cpu")
    model = moved(tunable_model(vlm, trained_names(vlm, 3), lora=2))
    write_checkpoint(finished(model, vlm), tmp_path / "out", adapter=model)
    files = texts_of(tmp_path / "out")
    assert {"config.json", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(files)
    for name, text in files.items():
        assert "secret" not in text, name
        assert str(tmp_path) not in text, name
        assert os.path.expanduser("~") not in text, name
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "mine"


def test_a_key_to_the_hub_is_not_written(bare, tmp_path):
    write_checkpoint(bare, tmp_path / "language")
    for number, name in enumerate(["toy:stage1", tmp_path / "language"]):
        vlm = interp.load(name, device="cpu", token="hf_key", check=False)
        vlm.tokenizer.init_kwargs["token"] = "hf_key"  # transformers keeps it for some tokenizers
        write_checkpoint(vlm, tmp_path / f"out{number}")
        assert not [file for file, text in texts_of(tmp_path / f"out{number}").items() if "hf_key" in text]
        assert vlm.tokenizer.init_kwargs["token"] == "hf_key"


def test_settings_for_generation_that_transformers_would_not_save(stage1, tmp_path):
    vlm = finished(tunable_model(stage1, trained_names(stage1, 0)), stage1)
    vlm.model.generation_config.do_sample = False
    vlm.model.generation_config.temperature = 0.6
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        vlm.model.save_pretrained(tmp_path / "theirs")
    write_checkpoint(vlm, tmp_path / "ours")
    assert interp.load(tmp_path / "ours").model.generation_config.temperature == 0.6
    assert vlm.model.generation_config.temperature == 0.6


def test_half_precision_and_a_language_model_alone(bare, tmp_path):
    half = interp.load("toy:stage1", device="cpu", dtype=torch.bfloat16)
    write_checkpoint(finished(moved(tunable_model(half, trained_names(half, 2))), half), tmp_path / "half")
    assert interp.load(tmp_path / "half").dtype == torch.bfloat16
    alone = finished(moved(tunable_model(bare, trained_names(bare, [1, 2]), lora=2)), bare)
    write_checkpoint(alone, tmp_path / "alone")
    again = interp.load(tmp_path / "alone", device="cpu")
    texts = ["a red 3 at top . what colour is the 3 ?"]
    assert torch.equal(exact(again, again.prepare(texts)), exact(alone, alone.prepare(texts)))
    assert AutoTokenizer.from_pretrained(tmp_path / "alone").get_vocab() == bare.tokenizer.get_vocab()
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "alone")) is type(bare.model)


@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl", "qwen3_vl_moe", "llama4", "idefics3"])
def test_any_architecture(name, tmp_path):
    vlm = interp.load(model=zoo.build(name), check=False)
    rows = vlm.prepare(encoding=zoo.encode(name))
    tuned = finished(moved(tunable_model(vlm, trained_names(vlm, [-1], connector=True))), vlm)
    write_checkpoint(tuned, tmp_path / "out")
    again = interp.load(tmp_path / "out", device="cpu", check=False)
    assert torch.equal(exact(again, rows), exact(tuned, rows))


# Adapters ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"target_modules": ["q_proj", "up_proj"], "use_rslora": True}]
)
def test_an_adapter_is_one_of_peft(stage1, rows, tmp_path, options):
    lora = LoraConfig(r=2, lora_alpha=8, **options) if options else 2
    names = trained_names(stage1, [2, 5], connector=True, head=True)
    torch.manual_seed(3)
    model = moved(tunable_model(stage1, names, lora))
    tuned = finished(model, stage1)
    write_checkpoint(tuned, tmp_path / "out", adapter=model)
    assert torch.equal(exact(interp.load(tmp_path / "out", device="cpu"), rows), exact(tuned, rows))
    theirs = PeftModel.from_pretrained(copy.deepcopy(stage1).model, tmp_path / "out" / "adapter").eval()
    with torch.no_grad():
        logits = theirs(**stage1.inputs_of(rows)).logits[:, -1]
    torch.testing.assert_close(logits, tuned.logits(rows), atol=1e-5, rtol=0)
    ours = interp.load(tmp_path / "out" / "adapter", device="cpu")
    torch.testing.assert_close(ours.logits(rows), tuned.logits(rows), atol=1e-5, rtol=0)
    assert ours.name == "adapter"
    assert ours.generate(rows, 2) == tuned.generate(rows, 2)
    assert all(weights.requires_grad for weights in ours.model.parameters())
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "toy:stage1"
    assert {name.split(".")[3] for name in config["target_modules"]} == {"2", "5"}


def test_an_adapter_beside_a_tied_head(tiny, tmp_path):
    vlm = interp.load(model=copy.deepcopy(tiny), check=False)
    rows = vlm.prepare(encoding=zoo.pad([[11, 12, 13], [14, 15, 16]]))
    model = moved(tunable_model(vlm, trained_names(vlm, 1, head=True, vision=True), lora=2))
    tuned = finished(model, vlm)
    write_checkpoint(tuned, tmp_path / "out", adapter=model)
    theirs = PeftModel.from_pretrained(copy.deepcopy(tiny), tmp_path / "out" / "adapter").eval()
    with torch.no_grad():
        logits = theirs(**vlm.inputs_of(rows)).logits[:, -1]
    torch.testing.assert_close(logits, tuned.logits(rows), atol=1e-5, rtol=0)


def test_an_adapter_in_half_precision_is_the_merged_model(tmp_path, rows):
    vlm = interp.load("toy:stage1", device="cpu", dtype=torch.bfloat16)
    model = moved(tunable_model(vlm, trained_names(vlm, [2, 5]), lora=2))
    tuned = finished(model, vlm)
    write_checkpoint(tuned, tmp_path / "out", adapter=model)
    ours = interp.load(tmp_path / "out" / "adapter", device="cpu", dtype="bfloat16")
    assert torch.equal(exact(ours, rows), exact(tuned, rows))


@pytest.mark.parametrize("name", ["glm4v_moe", "deepseek_ocr2", "mistral_large4", "falcon"])
def test_an_adapter_goes_by_the_names_of_its_model(name, tmp_path):
    """PEFT takes some names of these for those that older releases of transformers had."""
    vlm = interp.load(model=zoo.build(name), check=False)
    rows = vlm.prepare(encoding=zoo.encode(name))
    model = moved(tunable_model(vlm, trained_names(vlm, [-1]), lora=2))
    tuned = finished(model, vlm)
    write_checkpoint(vlm, tmp_path / "base")
    write_checkpoint(tuned, tmp_path / "out", adapter=model)
    config = tmp_path / "out" / "adapter" / "adapter_config.json"
    named = json.loads(config.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}
    config.write_text(json.dumps(named))
    ours = interp.load(tmp_path / "out" / "adapter", device="cpu", check=False)
    assert torch.equal(exact(ours, rows), exact(tuned, rows))
    assert not torch.allclose(exact(ours, rows), exact(vlm, rows))


@pytest.mark.parametrize("older", [False, True])
def test_an_adapter_that_peft_wrote(stage1, tmp_path, rows, older):
    """Before release 5 of transformers, LLaVA's parts had other names."""
    targets = r".*language_model.*\.(q_proj|v_proj)" if older else ["q_proj", "v_proj"]  # these are in the tower too
    theirs = get_peft_model(copy.deepcopy(stage1).model, LoraConfig(r=2, target_modules=targets)).eval()
    moved(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    if older:
        tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        new, old = "base_model.model.model.language_model.", "base_model.model.language_model.model."
        renamed = {name.replace(new, old): each for name, each in tensors.items()}
        assert not renamed.keys() & tensors.keys()
        save_file(renamed, tmp_path / "adapter" / "adapter_model.safetensors")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": "toy:stage1"})
    )
    ours = interp.load(tmp_path / "adapter", device="cpu")
    with torch.no_grad():
        wanted = theirs(**stage1.inputs_of(rows)).logits[:, -1]
    torch.testing.assert_close(ours.logits(rows), wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(ours.logits(rows), stage1.logits(rows))


def test_adapters_that_cannot_be_loaded(stage1, bare, tmp_path, monkeypatch):
    model = moved(tunable_model(stage1, trained_names(stage1, [2, 5]), lora=2))
    write_checkpoint(finished(model, stage1), tmp_path / "out", adapter=model)
    folder = tmp_path / "out" / "adapter"
    settings = json.loads((folder / "adapter_config.json").read_text())

    def refused(words, **changes):
        (folder / "adapter_config.json").write_text(json.dumps({**settings, **changes}))
        with pytest.raises(interp.InputError, match=words) as caught:
            interp.load(folder, device="cpu")
        assert "\n" not in str(caught.value)

    refused(
        "belongs to 'toy:stage9', which is not found here: 'toy:stage9' is not a toy",
        base_model_name_or_path="toy:stage9",
    )
    refused("belongs to 'gone', which is not found here", base_model_name_or_path="gone")
    refused("names no model that its adapter belongs to", base_model_name_or_path=None)
    refused("names no model", base_model_name_or_path=str(folder))
    refused("holds an adapter of type PROMPT_TUNING: expected LORA", peft_type="PROMPT_TUNING")
    refused("does not fit a LlavaForConditionalGeneration", r=4)
    tensors = load_file(folder / "adapter_model.safetensors")
    whole = dict(tensors)
    first = next(iter(tensors))
    del tensors[first]
    save_file(tensors, folder / "adapter_model.safetensors")
    refused("does not fit .*lora_A.default.weight is missing in the adapter")
    save_file(
        {**whole, "base_model.model.head.lora_A.weight": whole[first].clone()}, folder / "adapter_model.safetensors"
    )
    refused("does not fit .* has no place in the model")
    save_file(whole, folder / "adapter_model.safetensors")
    write_checkpoint(bare, tmp_path / "language")
    refused("does not fit a LlamaForCausalLM", base_model_name_or_path=str(tmp_path / "language"))
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(interp.InputError, match="names no model that its adapter belongs to"):
        interp.load(folder)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(interp.InputError, match="is on this machine, not on NDIF"):
        interp.load(folder, remote=True)
    refused("does not fit .*unterminated subpattern", rank_pattern={"(": 1})
    head = "base_model.model.lm_head.weight"
    save_file({**whole, head: torch.ones(1, 1)}, folder / "adapter_model.safetensors")  # copy_ would spread it
    refused(r"lm_head.weight is Tensor of shape \(1, 1\) in torch.float32, expected \(75, 128\)")
    save_file({**whole, head: torch.ones(75, 128, dtype=torch.int32)}, folder / "adapter_model.safetensors")
    refused("in torch.int32, expected")
    (folder / "adapter_model.safetensors").write_bytes(b"cut off")
    refused("'adapter_model.safetensors' is no whole safetensors file")
    (folder / "adapter_model.safetensors").unlink()
    refused("holds no weights of its adapter: expected adapter_model.safetensors beside adapter_config.json")


def test_an_adapter_beside_a_model_or_its_config(stage1, rows, tmp_path):
    model = moved(tunable_model(stage1, trained_names(stage1, [2, 5]), lora=2))
    tuned = finished(model, stage1)
    write_checkpoint(tuned, tmp_path / "out", adapter=model)
    out, adapter = tmp_path / "out", tmp_path / "out" / "adapter"
    (adapter / "config.json").write_text((out / "config.json").read_text())  # as some training scripts write it
    torch.testing.assert_close(interp.load(adapter, device="cpu").logits(rows), tuned.logits(rows), atol=1e-5, rtol=0)
    for file in adapter.iterdir():
        file.rename(out / file.name)
    with pytest.raises(interp.InputError, match="holds a model and an adapter: expected one of them"):
        interp.load(out, device="cpu")


class Harmful:
    """Unpickled as usual it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_of_an_adapter_runs(stage1, tmp_path, monkeypatch):
    """Neither a pickle nor a module that its settings name."""
    model = moved(tunable_model(stage1, trained_names(stage1, [2, 5]), lora=2))
    write_checkpoint(finished(model, stage1), tmp_path / "out", adapter=model)
    folder, made = tmp_path / "out" / "adapter", tmp_path / "made"
    (tmp_path / "megatron_core.py").write_text(f"import os; os.mkdir({str(made)!r})")
    monkeypatch.syspath_prepend(tmp_path)
    settings = json.loads((folder / "adapter_config.json").read_text())
    named = {"megatron_config": {"a": 1}, "megatron_core": "megatron_core"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | named))
    assert interp.load(folder, device="cpu", check=False).name == "adapter"
    assert not made.exists()
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    assert interp.load(folder, device="cpu", check=False).name == "adapter"
    torch.save(tensors | {"other": Harmful(made)}, folder / "adapter_model.bin")
    with pytest.raises(interp.InputError, match=r"'adapter_model.bin' is a pickle that names posix\.mkdir"):
        interp.load(folder, device="cpu")
    assert not made.exists()


# Folders -----------------------------------------------------------------------------------------------------------------


def test_folders_that_cannot_be_written_to(unchecked, toy, tmp_path):
    write_checkpoint(toy, tmp_path / "model")
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("")
    assert check_folder(None) is None
    assert check_folder(tmp_path / "new" / "deep") == tmp_path / "new" / "deep"
    assert not (tmp_path / "new").exists()
    assert check_folder(tmp_path / "full", resume=True) == tmp_path / "full"
    for out, resume, words in [
        (tmp_path / "model", False, "holds a model already: name another folder"),
        (tmp_path / "model", True, "holds a model already: it is finished, interp.load opens it"),
        (tmp_path / "full", False, "is not empty: name a new folder, or go on with what it holds by resume=True"),
        (tmp_path / "file", False, "cannot be made: .*file' is no folder that one can write to"),
        (tmp_path / "file" / "below", False, "cannot be made: .*file' is no folder"),
        (None, True, "resume=True without out=: expected the folder in which the training was begun"),
        (3, False, "out=3: expected a path to a folder, or None"),
        ("", False, "out='': expected a path to a folder"),
    ]:
        with pytest.raises(interp.InterpError, match=words) as caught:
            check_folder(out, resume)
        assert "\n" not in str(caught.value)
    before = texts_of(tmp_path / "model")
    with pytest.raises(interp.InputError, match="holds a model already"):
        write_checkpoint(toy, tmp_path / "model")
    assert texts_of(tmp_path / "model") == before


def test_a_model_without_weights_is_not_written(bare, tmp_path):
    vlm = interp.load(model=zoo.make(bare.model.config), check=False)
    vlm.model.to("meta")
    with pytest.raises(interp.InputError, match="has no weights here to write"):
        write_checkpoint(vlm, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_leaves_nothing(toy, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (out / "checkpoint-3").mkdir(parents=True)
    (out / "checkpoint-3" / "trainer_state.json").write_text("{}")

    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(toy.processor, "save_pretrained", full)
    with pytest.raises(interp.InputError, match=r"out=.* cannot be written \(No space left on device\)"):
        write_checkpoint(toy, out)
    assert [path.name for path in out.iterdir()] == ["checkpoint-3"]
    monkeypatch.undo()
    write_checkpoint(toy, out)
    assert (out / "checkpoint-3" / "trainer_state.json").read_text() == "{}"
    assert torch.equal(interp.load(out).model.lm_head.weight, toy.model.lm_head.weight)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process that is copied")
@pytest.mark.parametrize("number", [1, 4])
def test_a_write_that_is_killed_leaves_no_model(toy, tmp_path, monkeypatch, number):
    """Killed at a file of the way; a second write makes it whole and takes the remains away."""
    out, whole = tmp_path / "out", files.whole_file
    written = iter(range(100))

    def deadly(target):
        if next(written) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(target)

    monkeypatch.setattr(files, "whole_file", deadly)
    child = os.fork()
    if not child:
        write_checkpoint(toy, out)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    monkeypatch.undo()
    assert len([path for path in out.iterdir() if path.is_file()]) == number
    assert list(out.glob(".*.partial"))
    with pytest.raises(interp.InputError, match="holds no model"):
        interp.load(out)
    assert check_folder(out, resume=True)
    write_checkpoint(toy, out)
    assert not list(out.glob(".*"))
    assert interp.load(out).check().passed
