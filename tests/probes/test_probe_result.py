"""The directions of a result: each is what its probe reads, of length 1."""

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.probes import probe_layers

NAMES = np.array(["red", "green", "blue"])


def probed(n_classes, kind):
    rng = np.random.default_rng(0)
    y = rng.integers(n_classes, size=300)
    states = rng.normal(size=(2, 300, 6)) * np.logspace(-1, 2, 6)
    states[:, :, :3] += 2 * np.logspace(-1, 2, 6)[:3] * np.eye(3)[y]
    return states, probe_layers(states, NAMES[y], kind=kind, permutations=0, control=False)


@pytest.mark.parametrize("kind", ["logistic", "ridge", "mean_difference"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_direction_is_where_the_score_of_its_class_rises_fastest(kind, n_classes):
    states, found = probed(n_classes, kind)
    probe = found.probes[1]

    def margins(x):
        scores = probe.decision_function(x)
        scores = np.stack([0 * scores, scores], axis=1) if n_classes == 2 else scores
        return scores - scores.mean(axis=1, keepdims=True)

    for number, name in enumerate(found.classes):
        direction = found.direction(1, name).numpy()
        assert np.linalg.norm(direction) == pytest.approx(1, abs=1e-6)
        steps = np.array([(margins(states[1, :1] + e) - margins(states[1, :1]))[0, number] for e in np.eye(6)])
        np.testing.assert_allclose(direction, steps / np.linalg.norm(steps), atol=1e-5)
    assert torch.equal(found.direction(-1, name), found.direction(1, name))


@pytest.mark.parametrize("kind", ["logistic", "mean_difference"])
def test_without_its_directions_a_probe_gives_one_answer(kind):
    states, found = probed(3, kind)
    every = torch.stack([found.direction(0, name) for name in found.classes]).double().numpy()
    left = states[0] - states[0] @ np.linalg.pinv(every) @ every
    assert len(set(found.probes[0].predict(states[0]))) == 3
    assert len(set(found.probes[0].predict(left))) == 1


@pytest.mark.usefixtures("unchecked")
def test_refusals_are_one_line():
    states, found = probed(3, "logistic")
    for arguments, message in [
        ((2, "red"), "state=2: expected an int from -2 to 1"),
        ((True, "red"), "state=True"),
        ((0.5, "red"), "state=0.5: expected an int from -2 to 1"),
        (("0", "red"), "state='0': expected an int from -2 to 1"),
        ((0, "violet"), r"label='violet' is not a class of this probe: use one of \('blue', 'green', 'red'\)"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            found.direction(*arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="has the same scores for all classes"):
        probe_layers(0 * states, NAMES[np.arange(300) % 3]).direction(0, "red")
