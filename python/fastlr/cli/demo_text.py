"""The demo's text: the documentation that comes with every Python."""

from __future__ import annotations

from dataclasses import dataclass

_CALIBRATION_SHARE = 0.6


@dataclass(frozen=True)
class DemoText:
    """Two texts without a common paragraph.

    Attributes
    ----------
    calibration, held_out : str
        The texts.
    last_topic, first_held_out_topic : str
        Where the one ends and the other begins.
    """

    calibration: str
    held_out: str
    last_topic: str
    first_held_out_topic: str


def demo_text() -> DemoText:
    """Cut ``pydoc_data.topics`` in two.

    Some topics contain others word for word, so a cut between topics alone would let the
    held-out part repeat what the calibration has seen: such paragraphs are taken out of it.

    Raises
    ------
    ImportError
        If this Python comes without its documentation.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ImportError(
            "this Python comes without pydoc_data, the text that the demo measures on; "
            "use a Python from python.org, conda or your distribution's full package"
        ) from error
    names = sorted(topics)
    cut = _cut([len(topics[name]) for name in names])
    seen = {_words(paragraph) for name in names[:cut] for paragraph in _paragraphs(topics[name])}
    fresh = [
        paragraph
        for name in names[cut:]
        for paragraph in _paragraphs(topics[name])
        if _words(paragraph) not in seen
    ]
    return DemoText(
        calibration="\n\n".join(topics[name] for name in names[:cut]),
        held_out="\n\n".join(fresh),
        last_topic=names[cut - 1],
        first_held_out_topic=names[cut],
    )


def _cut(lengths: list[int]) -> int:
    """Return how many topics make up the calibration's share of the characters."""
    goal = _CALIBRATION_SHARE * sum(lengths)
    total = 0
    for count, length in enumerate(lengths):
        if total + length > goal:
            return max(count, 1)
        total += length
    return len(lengths) - 1


def _paragraphs(topic: str) -> list[str]:
    return topic.split("\n\n")


def _words(paragraph: str) -> str:
    """Forget line breaks and indentation, which differ between two copies of a paragraph."""
    return " ".join(paragraph.split())
