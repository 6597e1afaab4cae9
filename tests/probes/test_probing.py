from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from threadpoolctl import threadpool_info, threadpool_limits

from interp.errors import InputError, InputTypeError
from interp.probes import LinearProbe, ProbeResult, linear, probe_layers
from interp.results import Result
from interp.statistics import wilson_interval

COLOURS = np.array(["blue", "green", "red"])


def planted(n=300, d=10, layers=5, first=2, seed=0):
    """States in which a colour is written from layer `first` on, and the colours."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(3, size=n)
    states = rng.normal(size=(layers, n, d))
    states[first:, :, :3] += 6 * np.eye(3)[colour]
    return states, COLOURS[colour]


@pytest.mark.parametrize("kind", ["logistic", "ridge", "mean_difference"])
def test_finds_where_the_label_is_written(kind):
    states, labels = planted()
    found = probe_layers(states, labels, kind=kind)
    assert (found.accuracy[2:] > 0.95).all()
    assert ((found.low[:2] < found.chance) & (found.accuracy[:2] < found.chance + 0.15)).all()
    assert found.control is not None
    assert (found.control < 0.55).all()
    assert ((found.low <= found.accuracy) & (found.accuracy <= found.high)).all()
    assert (found.n_train, found.n_test, found.classes) == (210, 90, ("blue", "green", "red"))


@pytest.mark.parametrize(("n", "d", "threads"), [(300, 10, {1}), (200, 8000, {2})])
def test_small_fits_run_on_one_thread_of_numpy(monkeypatch, n, d, threads):
    """Two that wait for each other in every step of a solver take 20 times as long where other programs use the cores."""
    seen = []

    def fit(*args):
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return linear._mean_difference(*args)

    monkeypatch.setitem(linear.KINDS, "mean_difference", fit)
    with threadpool_limits(2, "blas"):
        probe_layers(*planted(n, d, layers=1), kind="mean_difference", permutations=0)
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {2}
    assert set(seen) == threads


def test_the_numbers_are_those_of_the_probes_on_the_test_rows():
    states, labels = planted()
    found = probe_layers(torch.tensor(states).float(), list(labels), seed=3)
    train, test = found.train_rows.numpy(), found.test_rows.numpy()
    assert sorted([*train, *test]) == list(range(300))
    for state, probe, accuracy in zip(states, found.probes, found.accuracy, strict=True):
        assert probe.score(state[test], labels[test]) == pytest.approx(float(accuracy))
        fresh = LinearProbe().fit(np.float32(state[train]), labels[train])
        np.testing.assert_allclose(fresh.coef_, probe.coef_, rtol=1e-6)
    assert found.chance == max(np.mean(labels[test] == name) for name in COLOURS)
    assert [np.mean(labels[train] == name) for name in COLOURS] == pytest.approx(
        [np.mean(labels[test] == name) for name in COLOURS], abs=0.02
    )


def test_groups_stay_on_one_side_and_expose_what_a_plain_split_hides():
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(60), 6)
    labels = rng.integers(2, size=60)[image]
    states = (5 * rng.normal(size=(60, 40))[image] + 0.1 * rng.normal(size=(360, 40)))[None]  # images, not labels
    grouped = probe_layers(states, labels, groups=[f"image {number}" for number in image])
    assert not set(image[grouped.train_rows]) & set(image[grouped.test_rows])
    assert probe_layers(states, labels).accuracy[0] > 0.85
    assert grouped.accuracy[0] < 0.75
    # 18 test images of 6 patches each, all six right or wrong together: an interval for about 18 examples, not 108
    width = float(grouped.high[0] - grouped.low[0])
    low, high = wilson_interval(float(grouped.accuracy[0]), 108)
    assert width > 1.8 * (high - low)


def test_the_control_of_groups_is_near_chance():
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(50), 8)
    states = (5 * rng.normal(size=(50, 60))[image] + 0.01 * rng.normal(size=(400, 60)))[None]
    labels = (np.arange(50) % 2)[image]
    found = probe_layers(states, labels, groups=image, control=5, seed=1)
    assert found.control is not None
    assert found.control[0] == pytest.approx(0.5, abs=0.2)


def test_each_shuffle_is_another():
    """The mean of several differs from the first, and tends to chance."""
    states = np.random.default_rng(0).normal(size=(4, 80, 5))
    labels = np.arange(80) % 2
    one, several = (probe_layers(states, labels, control=times, permutations=0).control for times in (True, 20))
    assert one is not None
    assert several is not None
    assert not torch.equal(one, several)
    assert several.numpy() == pytest.approx(0.5, abs=0.06)


def test_an_interval_of_transfer_is_over_groups_too():
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(60), 6)
    labels = rng.integers(2, size=60)[image]
    states = rng.normal(size=(1, 60, 8))[:, image]  # a probe is right about all patches of an image or about none
    found = probe_layers(states, labels, groups=image, transfer=states, permutations=0)
    assert found.transfer_low is not None
    assert found.transfer_high is not None
    assert torch.equal(found.transfer_low, found.low)
    assert torch.equal(found.transfer_high, found.high)


def test_transfer_reads_the_other_modality_where_the_code_is_shared():
    states, labels = planted(first=0)
    other = np.random.default_rng(1).normal(size=states.shape)
    other[3:, :, :3] += 6 * np.eye(3)[np.searchsorted(COLOURS, labels)]
    found = probe_layers(states, labels, transfer=torch.tensor(other))
    assert found.transfer is not None
    assert (found.transfer[3:] > 0.95).all()
    assert (found.transfer[:3] < 0.6).all()
    test = found.test_rows.numpy()
    assert float(found.transfer[0]) == pytest.approx(found.probes[0].score(other[0][test], labels[test]))
    assert found.transfer_low is not None
    assert (found.transfer_low <= found.transfer).all()
    assert probe_layers(states, labels).transfer is None


def test_takes_activations_by_site():
    states, labels = planted()

    class Site:
        def __getitem__(self, index):
            return torch.tensor(states)[index]

    found = probe_layers({"resid_post": Site()}, labels, site="resid_post", transfer={"resid_post": Site()})
    assert torch.equal(found.accuracy, probe_layers(states, labels).accuracy)
    assert found.transfer is not None
    assert torch.equal(found.accuracy, found.transfer)


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series])
def test_takes_labels_of_any_sequence(kind):
    states, labels = planted()
    found = probe_layers(states, kind(labels.tolist()))
    assert found.classes == ("blue", "green", "red")
    assert probe_layers(states, kind([len(label) for label in labels])).classes == (3, 4, 5)


def test_the_same_seed_gives_the_same_numbers():
    states, labels = planted()
    first, again, other = (probe_layers(states, labels, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.accuracy, again.accuracy)
    assert first.control is not None
    assert torch.equal(first.control, again.control)
    assert not torch.equal(first.test_rows, other.test_rows)
    assert probe_layers(states, labels, control=False).control is None


def test_kept_with_its_probes_and_read_again(tmp_path):
    states, labels = planted()
    found = probe_layers(states, labels, transfer=states + 0.5, seed=4)
    again = Result.load(found.save(tmp_path / "probe.safetensors"))
    assert isinstance(again, ProbeResult)
    pd.testing.assert_frame_equal(again.to_frame(), found.to_frame())
    assert (again.classes, again.provenance.seed, again.n_test) == (found.classes, 4, 90)
    for state, old, new in zip(states, found.probes, again.probes, strict=True):
        assert np.array_equal(new.predict(state), old.predict(state))
        assert new.get_params() == old.get_params()


def test_a_file_cannot_name_a_class_from_elsewhere(tmp_path):
    path = probe_layers(*planted()).save(tmp_path / "probe.safetensors")
    with safe_open(str(path), framework="pt") as stored:
        header, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    for name in ("subprocess:Popen", "Popen", "interp.probes.linear:KINDS", "interp.nothing:Probe", "StoredValue"):
        changed = header["fields"].replace('"LinearProbe"', f'"{name}"')
        assert changed != header["fields"]
        json.loads(changed)
        save_file(tensors, path, metadata={**header, "fields": changed})
        with pytest.raises(InputError, match=name):
            Result.load(path)


def test_frame_is_tidy():
    frame = probe_layers(*planted()).to_frame()
    assert list(frame.columns) == [
        *("state", "accuracy", "low", "high", "p", "p_family", "p_holm"),
        *("control", "group_control", "control_task", "selectivity"),
        *("transfer", "transfer_low", "transfer_high", "chance"),
    ]
    assert frame.state.tolist() == [0, 1, 2, 3, 4]
    assert frame.transfer.isna().all()


@pytest.mark.usefixtures("unchecked")
def test_refusals_are_one_line():
    states, labels = planted(n=60)
    broken = states.copy()
    broken[3, 7, :2] = np.inf, -np.inf
    rare = labels.astype(object)
    rare[0] = "violet"
    one_image = np.where(labels == "red", 0, 1 + np.arange(60) % 20)
    for arguments, message in [
        ((states, labels[:59]), "59 labels for 60 examples"),
        ((states, "red"), "3 labels for 60 examples"),
        ((states, [0.5] * 60), "expected strings or integers"),
        ((states, [None, *labels[1:]]), "labels contain None"),
        (
            (states, [[0], *[[0, 1]] * (len(labels) - 1)]),
            r"labels=\[\[0\], .* have several lengths: expected strings",
        ),
        ((states, ["red"] * 60), "all labels are 'red', one class"),
        ((states, rare), "class .*'violet'.* has 1 examples"),
        ((broken, labels), "1 rows that are not finite, the first at state 3, example 7"),
        ((states[0], labels), r"acts has shape \(60, 10\)"),
        (
            (states[:, :, None], labels),
            r"acts has shape \(5, 60, 1, 10\).*, pass one head's, as in acts\['z'\]\[:, :, 0\]",
        ),
        ((states, labels, "resid", np.arange(59)), "59 groups for 60 examples"),
        ((states, labels, "resid", np.zeros(60, int)), "class 'blue' has 1 groups"),
        ((states, labels, "resid", one_image), "class 'red' has 1 groups"),
        ((states, labels, "resid", None, 0.01), r"no split of 60 examples with test_size=0.01"),
        ((states, labels, "resid", np.arange(60) % 2, 0.9), r"no split of 2 groups with test_size=0.9"),
        ((states, labels, "resid", None, 1.0), r"test_size=1.0"),
        ((states * 1j, labels), "acts has dtype complex128: expected real numbers"),
        ((torch.tensor(states * 1j), labels), "acts has dtype torch.complex128: expected real numbers"),
        ((states.astype(str), labels), "acts has dtype <U.*: expected real numbers"),
        ((states, labels, "resid", None, 0.3, -1), r"control=-1"),
        ((states, labels, "resid", None, 0.3, True, states[:4]), r"transfer has shape \(4, 60, 10\)"),
        ((states, labels, "resid", None, 0.3, True, None, -1), "seed=-1: expected an int of 0 or more"),
        ((states, labels, "resid", None, 0.3, True, None, 2**32), "seed=4294967296: expected an int of 0 or more"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            probe_layers(*arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputTypeError, match="acts is a str: expected activations"):
        probe_layers("states", labels)
    with pytest.raises(InputError, match=r"kind=\['ridge'\] is unknown: use one of"):
        probe_layers(states, labels, kind=["ridge"])
    with pytest.raises(InputTypeError, match="acts is a list"):
        probe_layers([[1.0]], labels)


@pytest.mark.parametrize("unit", [1e30, 1e-30])
@pytest.mark.parametrize("kind", ["logistic", "ridge", "mean_difference"])
def test_probes_do_not_depend_on_the_unit_of_the_features(kind, unit):
    """Features of float32 as large or small as it holds, one that is constant and one that varies by rounding alone."""
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=200)
    states = rng.normal(size=(2, 200, 8)) * np.logspace(-3, 3, 8)
    states[1, :, :3] += 2 * np.logspace(-3, 3, 8)[:3] * np.eye(3)[y]
    states[..., 6], states[..., 7] = 300, 300 * (1 + 1e-7 * np.eye(3)[y][:, 1])
    states, labels = states.astype(np.float32), np.array(["red", "green", "blue"])[y]
    plain, scaled = (probe_layers(each, labels, kind=kind) for each in (states, states * np.float32(unit)))
    assert plain.accuracy[1] > 0.7
    for name in ("accuracy", "control", "p"):
        assert torch.equal(getattr(plain, name), getattr(scaled, name))
    torch.testing.assert_close(plain.direction(1, "red"), scaled.direction(1, "red"), atol=1e-3, rtol=0)
