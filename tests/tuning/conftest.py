"""Each training begins with a collection of garbage, a second among the objects of all packages: they are left out of it."""

import gc

import pytest

import interp


@pytest.fixture(scope="package", autouse=True)
def quick_collections(toy, stage1):
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="package")
def rows():
    """Conversations about eight pictures, two questions each."""
    return interp.toy.conversations(8, seed=0, questions=2)
