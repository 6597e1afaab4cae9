"""Every example in a public docstring runs and gives what it says."""

import doctest
import importlib
import pkgutil

import pytest

import interp

MODULES = [module.name for module in pkgutil.walk_packages(interp.__path__, "interp.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(verbose=False)
    for test in finder.find(module):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
