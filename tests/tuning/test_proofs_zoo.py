"""Architectures of several families tune with a band and with adapters, and what is written passes every proof again."""

import pytest
import torch

import interp
from families import ONE_FOLDER, family, picture
from interp.tuning import tune

# Fixed squares, packed patches with positions of three axes, tiles, images that attend in both directions, a prefix.
FAMILIES = ("llava", "qwen2_5_vl", "idefics3", "gemma3", "internvl", "paligemma")
LAYERS = (1, 2)
STEPS = 3
SETTINGS = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 3,
    "learning_rate": 3e-3,
    "warmup_steps": 0,
    "lr_scheduler_type": "constant",
}
WAYS = {"band": {}, "adapters": {"lora": 4}}


def rows():
    """Pictures of several shapes, and a row with two of them; answers of different length."""
    asked = [
        ("<image> what is this ?", [picture(seed=1)], "a cat"),
        ("<image> and <image> differ", [picture(28, 40, seed=2), picture(seed=3)], "not at all"),
        ("<image> where ?", [picture(64, 20, seed=4)], "on a red mat"),
    ]
    return [{"text": text, "image": pictures, "answer": answer} for text, pictures, answer in asked]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The result of a family tuned in a way, and the folder it was written to."""
    made = {}

    def get(name, way):
        if (name, way) not in made:
            out = tmp_path_factory.mktemp(f"{name}_{way}") / "tuned"
            options = {"layers": LAYERS, "arguments": SETTINGS, "out": out, **WAYS[way]}
            made[name, way] = tune(family(name), rows(), **options), out
        return made[name, way]

    return get


EACH = [(name, way) for name in FAMILIES for way in WAYS]


@pytest.mark.parametrize(("name", "way"), EACH)
def test_a_repeated_batch_is_learned(tuned, name, way):
    result, _ = tuned(name, way)
    assert len(result.loss) == STEPS
    assert result.loss[2] < result.loss[1] < result.loss[0]
    assert result.cut_off == 0
    assert result.skipped == 0
    assert result.rows == 3


@pytest.mark.parametrize(("name", "way"), EACH)
def test_frozen_tensors_keep_every_bit(tuned, name, way):
    result, _ = tuned(name, way)
    vlm = family(name)
    before, after = vlm.model.state_dict(), result.vlm.model.state_dict()
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    inside = {key for key in before if key.startswith(tuple(f"{vlm.structure.layers}.{layer}." for layer in LAYERS))}
    if way == "band":
        assert moved == inside
    else:  # adapters change the weights of linear maps
        assert moved
        assert moved <= {key for key in inside if before[key].ndim == 2}
        assert {key.split(f"{vlm.structure.layers}.")[1][0] for key in moved} == {"1", "2"}
    assert result.unchanged


@pytest.mark.parametrize(("name", "way"), EACH)
def test_what_was_written_passes_every_proof(tuned, name, way):
    result, out = tuned(name, way)
    processor = None if name in ONE_FOLDER else family(name).processor  # the others' do not load without torchvision
    vlm = interp.load(out, device="cpu", processor=processor)
    state = vlm.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in result.vlm.model.state_dict().items())
    with_picture = vlm.prepare(["<image> what is this ?"], [picture(seed=1)])
    batches = [with_picture] if name == "paligemma" else [vlm.prepare(["no picture at all"]), with_picture]
    for batch in batches:
        outcomes = vlm.check(batch).to_frame().set_index("name")["outcome"]
        pending = {"image"} if batch is not with_picture else set()
        assert set(outcomes.drop(list(pending & set(outcomes.index)))) == {"passed"}, outcomes.to_string()
    torch.testing.assert_close(vlm.logits(with_picture), result.vlm.logits(with_picture), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("llava", "qwen2_5_vl", "paligemma")])
def test_the_first_loss_is_that_of_the_answers_behind_their_prompts(tuned, name):
    """Row by row without padding; a byte is a token here, so the answer's are known without a look at the labels."""
    vlm, result = family(name), tuned(name, "band")[0]
    total = tokens = 0.0
    for row in rows():
        batch = vlm.prepare([f"{row['text']} {row['answer']}"], [row["image"]])
        logits = vlm.logits(batch, positions="all")[0].log_softmax(dim=-1)
        answer = [*vlm.tokenizer(row["answer"], add_special_tokens=False)["input_ids"], vlm.tokenizer.eos_token_id]
        assert batch.inputs["input_ids"][0, 1 - len(answer) :].tolist() == answer[:-1]
        total -= logits[-len(answer) :].gather(1, torch.tensor(answer)[:, None]).sum().item()
        tokens += len(answer)
    assert result.loss[0] == pytest.approx(total / tokens, rel=1e-4)
