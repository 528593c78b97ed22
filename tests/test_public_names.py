"""Every public name is documented by an example that runs."""

import doctest

import pytest

import fastlr.linalg
import fastlr.nn
import fastlr.nn.compression.methods

PUBLIC = [
    pytest.param(getattr(module, name), id=f"{module.__name__}.{name}")
    for module in (fastlr.linalg, fastlr.nn, fastlr.nn.compression, fastlr.nn.parametrize)
    for name in module.__all__
]


@pytest.mark.parametrize("public", PUBLIC)
def test_doctest(public, monkeypatch):
    # What an example registers is forgotten.
    methods = fastlr.nn.compression.methods
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    examples = doctest.DocTestFinder(recurse=False).find(public, public.__name__)
    assert examples
    assert examples[0].examples, "no example in the docstring"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for example in examples:
        assert runner.run(example).failed == 0
