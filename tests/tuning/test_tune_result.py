"""What a training leaves as a result: the record of its steps, kept and drawn."""

import dataclasses
import math

import pytest
import torch

import interp
from interp.tuning.tune_result import TuneResult, record_of


def made(steps=3, **changes):
    history = [
        {"loss": 1.0 / (step + 1), "learning_rate": 0.1 * step, "cut_off": [], "step": step + 1}
        for step in range(steps)
    ]
    history[0] |= {"flops": 12.0, "gradient_bytes": 8, "optimizer_bytes": 16, "activation_bytes": 4}
    for step, entry in enumerate(history[1:]):
        entry |= {"forward": 1.0, "backward": 2.0 + step, "optimizer": 0.5, "peak_bytes": 100 + step}
    counts = {"trained_parameters": 2, "frozen_parameters": 5, "rows": 4, "cut_off": 0, "skipped": 0}
    hashes = {"hashes_before": {"b": "1"}, "hashes_after": {"b": "1"}}
    fields = {"layers": (1,), "trained": ("a",), **counts, **hashes, **record_of([*history, {"train_loss": 0.5}])}
    return TuneResult(**fields | changes)


def test_a_record_has_each_step():
    result = made()
    assert result.loss.tolist() == pytest.approx([1, 1 / 2, 1 / 3])
    assert result.rate.tolist() == pytest.approx([0, 0.1, 0.2])
    assert result.extra_loss.tolist() == [0, 0, 0]
    assert result.seconds[0].isnan().all()
    assert result.seconds[1:].tolist() == [[1, 2, 0.5], [1, 3, 0.5]]
    assert (result.flops, result.gradient_bytes, result.optimizer_bytes, result.activation_bytes) == (12, 8, 16, 4)
    assert result.peak_bytes == 101
    assert result.step_seconds == 4.0
    assert math.isnan(made(1).step_seconds)
    assert list(result.to_frame()) == ["step", "loss", "extra_loss", "rate", "forward", "backward", "optimizer"]
    assert result.to_frame()["step"].tolist() == [1, 2, 3]


def test_unchanged_is_whether_all_frozen_tensors_are():
    assert made().unchanged
    assert not made(hashes_after={"b": "2"}).unchanged


def test_the_model_is_not_saved(tmp_path, toy):
    result = made(vlm=toy)
    path = result.save(tmp_path / "result")
    assert path.stat().st_size < 5000
    again = TuneResult.load(path)
    assert again.vlm is None
    assert again.to_frame().equals(result.to_frame())
    assert "VLM" not in repr(result)
    saved = {field.name for field in dataclasses.fields(result)} - {"vlm", "provenance"}
    assert all(type(getattr(again, name)) is type(getattr(result, name)) for name in saved)


def test_steps_of_unlike_number_are_refused(unchecked):
    with pytest.raises(interp.InputError, match="expected"):
        made(loss=torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_figure_has_the_loss_and_the_time_of_each_phase(steps):
    figure = made(steps).plot()
    assert [trace.name for trace in figure.data] == ["loss", "forward", "backward", "optimizer"]
    assert list(figure.data[0].y) == pytest.approx(made(steps).loss.tolist())
    assert list(figure.data[2].y) == [None, 2.0, 3.0][:steps]
    extra = made(steps, extra_loss=torch.ones(steps, dtype=torch.float64)).plot()
    assert extra.data[1].name == "of this, the extra loss"
