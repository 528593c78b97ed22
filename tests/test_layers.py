"""Imports go one way: cli → nn → linalg → _ops, _core → torch; and `import fastlr` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fastlr

ROOT = Path(fastlr.__file__).parent
# What the modules of a folder import of fastlr beside their own folder; "fastlr" is the bare
# package, for its version and build_info.
ALLOWED = {
    "linalg": {"fastlr._ops", "fastlr._core"},
    "nn": {"fastlr", "fastlr.linalg", "fastlr._transformers"},
    "cli": {"fastlr", "fastlr.linalg", "fastlr.nn"},
}
# These subclass types of transformers; nothing imports them at module level.
NEEDS_TRANSFORMERS = {Path("nn/hf_quantizer.py")}
# Imported inside the functions that need them.
HEAVY = {
    "transformers",
    "safetensors",
    "peft",
    "bitsandbytes",
    "matplotlib",
    "rich",
    "typer",
    "scipy",
    "sklearn",
    "gguf",
}

modules = [path for layer in ALLOWED for path in sorted((ROOT / layer).rglob("*.py"))]
# The command needs its extra: tests/cli checks that a missing package is reported.
light_modules = [
    path
    for path in modules
    if path.relative_to(ROOT).parts[0] != "cli" and path.relative_to(ROOT) not in NEEDS_TRANSFORMERS
]


def imported(tree):
    """Names of imported modules; `from a import b` counts as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name, package):
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("path", modules, ids=lambda p: str(p.relative_to(ROOT)))
def test_module_keeps_to_its_layer(path):
    layer = path.relative_to(ROOT).parts[0]
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    for name in imported(tree):
        if within(name, "fastlr"):
            assert within(name, f"fastlr.{layer}") or any(
                name == package or (package != "fastlr" and within(name, package))
                for package in ALLOWED[layer]
            ), f"{path.name} imports {name}"
    if layer != "linalg":
        assert "torch.ops.fastlr" not in source
        assert "fastlr._core" not in source


@pytest.mark.parametrize("path", light_modules, ids=lambda p: str(p.relative_to(ROOT)))
def test_optional_packages_are_not_imported_at_module_level(path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            roots = {name.partition(".")[0] for name in imported(node)}
            assert not roots & HEAVY


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [("import fastlr", HEAVY | {"torch"}), ("import fastlr.linalg, fastlr.nn", HEAVY)],
)
def test_import_loads_no_package_that_it_does_not_need(statement, unwanted):
    code = f"{statement}; import sys; print(sorted({unwanted!r} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_parametrize_comes_with_nn():
    code = "import fastlr.nn; fastlr.nn.parametrize.orthogonal"
    subprocess.run([sys.executable, "-c", code], check=True)
