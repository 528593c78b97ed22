"""bitsandbytes' own layers of four bits, where they can be trusted."""

from typing import Any

import pytest


def bitsandbytes() -> Any:
    """The package; skips the test where it has no layers to test with."""
    package = pytest.importorskip("bitsandbytes", reason="quantizes to four bits")
    if package.functional.has_avx512bf16():
        pytest.skip(
            "bitsandbytes 0.50 packs four-bit weights anew at the first call on CPUs with "
            "AVX512-BF16, and then reads them wrongly elsewhere"
        )
    return package
