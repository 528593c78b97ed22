"""Enter fastlr's checkpoints into transformers when transformers is imported.

Neither transformers nor torch is imported here: `import fastlr` stays light.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

REGISTRY = "transformers.quantizers.auto"


def register_on_import() -> None:
    """Register fastlr's classes now if transformers is loaded, or else when it is.

    So ``AutoModelForCausalLM.from_pretrained`` reads fastlr's checkpoints after ``import fastlr``,
    whichever of the two was imported first, and ``import fastlr`` does not cost the seconds that
    importing transformers takes.
    """
    if REGISTRY in sys.modules:
        _register()
    elif not any(isinstance(finder, _RegistryFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegistryFinder())


def _register() -> None:
    importlib.import_module("fastlr.nn.hf").register()


class _RegistryFinder(importlib.abc.MetaPathFinder):
    """Sees transformers' registry of quantizers being imported, once."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != REGISTRY:
            return None
        # Out of the way first: the search below must find the real module.
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    """Loads a module through its own loader and registers fastlr's classes with it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _register()
