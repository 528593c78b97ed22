"""Run-time dependencies of the wheel: the torch minor that the core is compiled against."""

from collections.abc import Mapping
from typing import Any

from torch_paths import torch_version


def dynamic_metadata(
    settings: Mapping[str, Any], project: Mapping[str, Any]
) -> dict[str, list[str]]:
    major, minor = torch_version()[0].split(".")[:2]
    return {"dependencies": [f"torch=={major}.{minor}.*", "numpy>=1.26"]}


def dynamic_wheel(settings: Mapping[str, Any]) -> dict[str, bool]:
    return {"dependencies": True}
