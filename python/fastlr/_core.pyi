from collections.abc import Sequence

version: str
compiler: str

def philox4x32_10(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]: ...
