"""Each training begins with a collection of garbage, a second among the objects of all packages: they are left out of it."""

import gc

import pytest


@pytest.fixture(scope="package", autouse=True)
def quick_collections(toy, stage1):
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
