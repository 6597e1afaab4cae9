"""Shared by the tests of sweeps: scenes with a question each, the probability of the answers, and a count of runs."""

import pytest
import torch

import interp
from interp.models.running.trace import run_forward
from interp.patching import probability


@pytest.fixture(scope="session")
def asked():
    """Twelve scenes and a question about a colour of each."""
    scenes = list(interp.toy.scenes(12, seed=0))
    return scenes, [next(question for question in scene.questions if question.kind == "colour") for scene in scenes]


@pytest.fixture(scope="session")
def batch(toy, asked):
    scenes, questions = asked
    return toy.prepare([question.prompt for question in questions], [scene.image for scene in scenes])


@pytest.fixture(scope="session")
def metric(asked):
    return probability([question.answer for question in asked[1]])


@pytest.fixture(scope="session")
def chances(toy, batch, asked):
    """The probability of each row's answer under interventions, without this package's metrics."""
    ids = torch.tensor([toy.tokenizer.convert_tokens_to_ids(question.answer) for question in asked[1]])
    rows = torch.arange(len(ids))
    return lambda *interventions: toy.logits(batch, interventions).softmax(dim=-1)[rows, ids]


@pytest.fixture
def runs(monkeypatch):
    """A list that grows by one with each run of the model by a sweep."""
    counted = []

    def run(*arguments, **options):
        counted.append(1)
        return run_forward(*arguments, **options)

    monkeypatch.setattr("interp.patching.window_sweeps.run_forward", run)
    return counted
