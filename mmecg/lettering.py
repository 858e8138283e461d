"""Text on paper: lines that fit a width in millimetres, and only characters that the font can draw."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import TextToPath

MM_PER_INCH = 25.4
MM_PER_POINT = MM_PER_INCH / 72
_HINTING_SLACK = 1.07  # a hinted glyph on the pixel grid is up to this much wider than its outline


def wrap(text: str, size: float, width: float, *, max_lines: int) -> list[str]:
    """Break text into lines that fit ``width`` mm; what does not fit in ``max_lines`` is left out and counted."""
    words = _split_words(legible(text).split(), size, width)
    lines: list[str] = []
    for position, word in enumerate(words):
        if lines and _width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        elif len(lines) < max_lines:
            lines.append(word)
        else:
            lines[-1] = _cut(lines[-1], len(words) - position, size, width, counted=max_lines > 1)
            break
    return lines or [""]


def _split_words(words: Iterable[str], size: float, width: float) -> list[str]:
    """Cut words that are wider than a line."""
    pieces: list[str] = []
    for word in words:
        start, room = 0, width
        for end, char in enumerate(word):
            room -= _width(char, size)
            if room < 0 and end > start:
                pieces.append(word[start:end])
                start, room = end, width - _width(char, size)
        pieces.append(word[start:])
    return pieces


def _cut(line: str, left_out: int, size: float, width: float, *, counted: bool) -> str:
    """Take words off a line until it ends, within ``width``, in an ellipsis and the number of words left out."""
    words = line.split()
    while True:
        ending = f"… [{left_out} more words]" if counted else "…"
        if len(words) < 2 or _width(f"{' '.join(words)} {ending}", size) <= width:
            break
        words.pop()
        left_out += 1
    start = " ".join(words)
    while start and _width(f"{start} {ending}", size) > width:
        start = start[:-1]
    return f"{start} {ending}"


def _width(text: str, size: float) -> float:
    """Return the width of a line in millimetres, as the sum of its characters (kerning only makes it narrower)."""
    return sum(map(_em_width, text)) * size * MM_PER_POINT * _HINTING_SLACK


@lru_cache(maxsize=4096)
def _em_width(char: str) -> float:
    """Return the width of a character in multiples of the font size."""
    width, _, _ = _MEASURE.get_text_width_height_descent(char, _FONT, ismath=False)
    return float(width) / _FONT.get_size_in_points()


def legible(text: str) -> str:
    """Replace characters that the font cannot draw, and controls, by a box or a space."""
    return "".join(_glyph(char) for char in text)


@lru_cache(maxsize=4096)
def _glyph(char: str) -> str:
    if not char.isprintable():
        return " "
    return char if get_font(findfont(_FONT)).get_char_index(ord(char)) else "\u25a1"


_FONT = FontProperties()
_MEASURE = TextToPath()
