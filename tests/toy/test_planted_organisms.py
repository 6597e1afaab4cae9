"""What all planted organisms share: they are loaded with all proofs, their truth is plain, and the page has their rows."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

import interp
from interp.toy.planted import builders

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PAGE = BENCHMARKS.parent / "docs" / "organisms.md"
sys.path.insert(0, str(BENCHMARKS))
ROOMS = sorted(path.stem for path in (BENCHMARKS / "planted").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", builders())
def test_an_organism_passes_all_proofs_and_states_its_truth(name):
    organism = interp.toy.planted(name)
    assert (organism.name, organism.seed, organism.truth.name) == (name, 0, name)
    assert organism.vlm.check().passed
    assert organism.truth.statement.endswith(".")


@pytest.mark.parametrize("name", builders())
def test_another_seed_has_other_weights_and_the_same_shapes(name):
    one, other = (interp.toy.planted(name, seed).vlm.model.state_dict() for seed in (0, 1))
    assert {key: value.shape for key, value in one.items()} == {key: value.shape for key, value in other.items()}
    assert any((one[key] != other[key]).any() for key in one)


@pytest.mark.parametrize("name", builders())
def test_neither_the_default_type_nor_the_random_state_takes_part(name):
    expected, state = interp.toy.planted(name, 1).vlm.model.state_dict(), torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        weights = interp.toy.planted(name, 1).vlm.model.state_dict()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(weights[key], value) and weights[key].dtype == value.dtype for key, value in expected.items()
    )


@pytest.mark.parametrize("room", ROOMS)
def test_the_page_has_every_row(room):
    page = PAGE.read_text()
    assert f"<!-- table {room} -->" in page
    assert f"<!-- end {room} -->" in page
    for row in importlib.import_module(f"planted.{room}").ROWS:
        assert f"| {row.detector} | {row.truth} |" in page
        assert {name for name in (row.organism, row.opposite) if ":" not in name} <= set(builders())


@pytest.mark.parametrize("name", ["sinks", 3, None, "Bypass"])
def test_an_unknown_name_is_one_line(name):
    with pytest.raises(interp.InputError, match=r"^name=.* is unknown: use one of .*$"):
        interp.toy.planted(name)


@pytest.mark.parametrize("seed", [-1, 1.5, "0", True])
def test_a_bad_seed_is_one_line(seed):
    with pytest.raises(interp.InputError, match=r"^seed=.*: expected an int of 0 or more"):
        interp.toy.planted("bypass", seed)
