"""What the tests of figures share."""

import pytest

from interp.patching import logit_difference
from interp.toy import pairs


@pytest.fixture(scope="session")
def colour_pairs(toy):
    """The clean and the corrupted batch of two pairs that differ in a colour, and the metric that compares their answers."""
    rows = pairs(2, seed=1)
    prompts = [pair.prompt for pair in rows]
    clean = toy.prepare(prompts, [pair.clean.image for pair in rows])
    corrupted = toy.prepare(prompts, [pair.corrupted.image for pair in rows])
    return clean, corrupted, logit_difference([pair.answer for pair in rows], [pair.other for pair in rows])
