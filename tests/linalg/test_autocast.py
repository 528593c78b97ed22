"""Autocast lowers no product that a public function makes."""

import doctest
import importlib
import inspect
import pkgutil
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastlr.linalg as la

# Their products are those of a layer, and lowered as a dense layer's are.
LAYERS = {"sparse_linear", "low_rank_linear", "interpolative_linear"}
# Its example makes so many products that watching them takes a minute: below, with fewer.
LONG = "functional_decomposition"
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot", "vdot", "convolution"}


class LoweredProducts(TorchDispatchMode):
    """Notes the functions of the package in which a product has a result in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        lowered = isinstance(result, Tensor) and result.dtype == torch.bfloat16
        if lowered and func.overloadpacket.__name__.rstrip("_") in PRODUCTS:
            frame = sys._getframe(1)
            while frame is not None:
                code = frame.f_code
                if frame.f_globals.get("__name__", "").startswith("fastlr."):
                    if not code.co_filename.startswith("<doctest"):
                        self.found.add(code.co_name)
                    break
                frame = frame.f_back
        return result


@pytest.mark.parametrize(
    "module", [module.name for module in pkgutil.iter_modules(la.__path__) if module.name != LONG]
)
@pytest.mark.filterwarnings("ignore")
def test_examples_under_autocast(module: str) -> None:
    """What an example itself multiplies is lowered, and may not look as it is printed."""
    runner = doctest.DocTestRunner(verbose=False)
    lowered = LoweredProducts()
    for test in doctest.DocTestFinder().find(importlib.import_module(f"fastlr.linalg.{module}")):
        with torch.autocast("cpu", dtype=torch.bfloat16), lowered:
            runner.run(test, out=lambda _: None)
    assert lowered.found <= LAYERS


def test_functional_tucker() -> None:
    t = la.random_matrix(30, 2, kind="uniform", seed=0, dtype=torch.float64)
    lowered = LoweredProducts()
    with torch.autocast("cpu", dtype=torch.bfloat16), lowered:
        fit = la.functional_tucker(t, t.sum(1), (2, 2), starts=1, max_sweeps=1, seed=0)
        fit.predict(t[:3])
    assert not lowered.found


def test_autocast_of_both_devices_and_what_a_function_raises() -> None:
    A = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).abs()
    expected = la.nmf(A, 3, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cuda", dtype=torch.float16):
        W, H = la.nmf(A, 3, seed=0)
        assert torch.equal(W, expected.W)
        assert torch.equal(H, expected.H)
        with pytest.raises(ValueError, match="nmf: rank must be"):
            la.nmf(A, -1)
        assert torch.is_autocast_enabled("cpu")
        assert (A @ A.T).dtype == torch.bfloat16


def test_a_lowered_product_is_seen() -> None:
    """The negative control: the same function without its guard."""
    model = la.pca(torch.eye(5, 4), 2, seed=0)
    lowered = LoweredProducts()
    with torch.autocast("cpu", dtype=torch.bfloat16), lowered:
        inspect.unwrap(la.PCA.transform)(model, torch.eye(5, 4))
    assert lowered.found == {"transform"}
