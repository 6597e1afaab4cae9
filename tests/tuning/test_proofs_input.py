"""What cannot be tuned is one line that says why, and the folder stays as it was."""

import numpy as np
import pytest
import torch
from PIL import Image

import interp
import tuning_oracles as oracles
from interp.tuning import tune

ONE = {"max_steps": 1, "per_device_train_batch_size": 2}


@pytest.fixture(scope="module")
def data():
    return oracles.rows(4)


def files(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refused(out, vlm, data, match, **options):
    """That a call is one line of our own kind, and leaves the folder and the model as they were."""
    before = files(out.parent)
    flags = [each.requires_grad for each in vlm.model.parameters()]
    with pytest.raises(interp.InterpError, match=match) as caught:
        tune(vlm, data, out=out, **{"layers": range(2, 6), "arguments": ONE, **options})
    assert "\n" not in str(caught.value)
    assert files(out.parent) == before
    assert out.exists() == any(name.parts[0] == out.name for name in before)
    assert [each.requires_grad for each in vlm.model.parameters()] == flags
    return str(caught.value)


def test_layers(stage1, data, tmp_path, unchecked):
    refused(tmp_path / "out", stage1, data, "layers", layers=())
    refused(tmp_path / "out", stage1, data, "8", layers=range(6, 10))
    refused(tmp_path / "out", stage1, data, "8", layers=8)
    refused(tmp_path / "out", stage1, data, "layers", layers="middle")
    refused(tmp_path / "out", stage1, data, "layers", layers=2.5)


def test_a_language_model_alone_has_no_connector(bare, tmp_path):
    data = oracles.rows(4, images=False)
    refused(tmp_path / "out", bare, data, "connector|projector", connector=True)
    refused(tmp_path / "out", bare, data, "vision|tower", vision=True)


def test_pictures(stage1, data, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for name in ("broken.png", "missing.png"):
        broken = [data[0], {**data[0], "id": "bad", "image": str(tmp_path / name)}]
        message = refused(tmp_path / "out", stage1, broken, name)
        assert "bad" in message


def test_conversations(stage1, data, tmp_path):
    asked = {**data[0], "id": "unanswered", "conversations": data[0]["conversations"][:1]}
    assert "unanswered" in refused(tmp_path / "out", stage1, [data[1], asked], "answer")
    empty = {"id": "empty", "text": "what ?", "answer": ""}
    assert "empty" in refused(tmp_path / "out", stage1, [{"id": "a", "text": "b", "answer": "c"}, empty], "words")
    refused(tmp_path / "out", stage1, [{"text": "what colour is the 3 ?"}], "answer")
    refused(tmp_path / "out", stage1, [], "row|empty")


def test_skipping_leaves_no_row(stage1, data, tmp_path):
    asked = [{**data[0], "conversations": data[0]["conversations"][:1]}]
    refused(tmp_path / "out", stage1, interp.Data(asked, on_error="skip"), "row|answer")


def test_a_folder_that_holds_something(stage1, data, tmp_path):
    out = tmp_path / "out"
    tune(stage1, data, layers=2, arguments={**ONE, "save_strategy": "steps", "save_steps": 1}, out=out)
    refused(out, stage1, data, "out")
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    refused(tmp_path / "file", stage1, data, "file")


def test_resuming_needs_the_same_training(stage1, data, tmp_path):
    out = tmp_path / "out"
    saved = {**ONE, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(interp.InterpError) as caught:
        tune(stage1, data, layers=2, arguments=saved, resume=True)
    assert "\n" not in str(caught.value)
    tune(stage1, data, layers=2, arguments=saved, out=out)
    refused(out, stage1, data, "layers|trained|band", layers=3, arguments=saved, resume=True)


def test_masks_of_another_size(stage1, data, tmp_path):
    small = [{"words": "red 3", "mask": np.ones((4, 4), dtype=bool)}]
    broken = [{**data[0], "masks": small}]
    refused(tmp_path / "out", stage1, broken, "mask", patch_alignment=0.5)
    image = Image.fromarray(np.ones((7, 9), dtype=np.uint8))
    refused(
        tmp_path / "out", stage1, [{**data[0], "masks": [{"words": "3", "mask": image}]}], "mask", patch_alignment=0.5
    )


def test_after_a_failure_the_call_can_be_made_again(stage1, data, tmp_path):
    """The picture that could not be read is repaired: no folder stands in the way."""
    name = tmp_path / "late.png"
    name.write_bytes(b"no picture")
    late = [*data, {**data[0], "id": "late", "image": str(name)}]
    options = {"arguments": {**ONE, "max_steps": 3, **oracles.SEQUENTIAL}}
    refused(tmp_path / "out", stage1, late, "late", **options)
    data[0]["image"].save(name)
    assert len(tune(stage1, late, layers=2, out=tmp_path / "out", **options).loss) == 3


def test_losses_that_are_not_finite(stage1, data, tmp_path):
    """A weight that is not a number makes a loss that is none: training on would spoil every weight."""
    import copy

    spoilt = copy.deepcopy(stage1)
    with torch.no_grad():
        spoilt.model.lm_head.weight[5] = float("nan")
    refused(tmp_path / "out", spoilt, data, "loss|finite|NaN|nan")


def test_arguments(stage1, data, tmp_path, unchecked):
    out = tmp_path / "out"
    refused(out, stage1, data, "learning_rat", arguments={"learning_rat": 1e-3})
    refused(out, stage1, data, "max_steps", arguments={"max_steps": "many"})
    refused(out, stage1, data, "arguments", arguments=5)
    refused(out, stage1, data, "lr_scheduler_type|cosinus", arguments={**ONE, "lr_scheduler_type": "cosinus"})
    refused(out, stage1, data, "output_dir|out", arguments={**ONE, "output_dir": "elsewhere"})
    refused(out, stage1, data, "max_length", max_length=0)
    refused(out, stage1, data, "patch_alignment", patch_alignment=-1.0)
    refused(out, stage1, data, "patch_alignment", patch_alignment=float("nan"))
    refused(out, stage1, data, "lora", lora=0)
    refused(out, stage1, data, "lora", lora="eight")
    refused(out, stage1, data, "connector", connector="yes")


def test_data_of_no_kind(stage1, tmp_path, unchecked):
    refused(tmp_path / "out", stage1, 7, "data")
    refused(tmp_path / "out", stage1, interp.toy.scenes(2, seed=1), "answer")


def test_a_model_that_is_not_here(stage1, data, tmp_path, unchecked):
    import copy

    nowhere = copy.deepcopy(stage1)
    nowhere.model.to("meta")
    refused(tmp_path / "out", nowhere, data, "weights|machine")
    with pytest.raises(interp.InterpError) as caught:
        tune("toy", data, layers=2, arguments=ONE)
    assert "\n" not in str(caught.value)


def test_every_answer_cut_off(stage1, data, tmp_path):
    """A length below every answer leaves nothing to learn from."""
    refused(tmp_path / "out", stage1, data, "max_length", max_length=5)


def test_an_answer_that_is_cut_off_is_counted(stage1, data):
    """The length of the second longest row: one row loses tokens, and is trained on what is left."""
    lengths = sorted(len(oracles.encode_row(row)[0]) for row in data)
    result = tune(stage1, data, layers=2, arguments={"per_device_train_batch_size": 4}, max_length=lengths[-2])
    assert result.cut_off == 1
    assert result.rows == 4
