"""ECG on ECG paper, true to scale: 25 mm/s and 10 mm/mV, and a page that shows a query beside its hits.

Everything is drawn in millimetres of paper, so a PNG printed at the dpi it was saved with can be measured with a ruler.

Policies, stated once:

* **Layout**: three rows of four columns of 2.5 s (I aVR V1 V4 / II aVL V2 V5 / III aVF V3 V6) above a rhythm strip of
  10 s of lead II (of the first recorded lead where II is missing), with a calibration pulse of 1 mV and 0.2 s.
* **Time**: the columns follow each other, so that they stand above their part of the rhythm strip. Of a recording
  shorter than 10 s every column shows the first 2.5 s instead. ``start_s`` moves the window.
* **Baseline**: each lead's median over the window is drawn on the row's baseline; nothing else is filtered.
* **Missing leads** are marked "not recorded", never drawn as a flat line.
* **Shade**: what speaks for a label is orange behind the trace, what speaks against it blue, averaged over 0.12 s and
  on one scale for all leads.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from mmecg.ecg import LEADS, Ecg
from mmecg.errors import SignalError
from mmecg.lettering import MM_PER_INCH, MM_PER_POINT, legible, wrap

MM_PER_S = 25.0
MM_PER_MV = 10.0
DEFAULT_DPI = 150
COLUMN_S = 2.5
STRIP_S = 10.0

_GRID_LEADS = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
_RHYTHM_LEAD = "II"

# Everything below is millimetres; the paper's size is a multiple of 5, so that it ends on a dark line.
_ROW = 30.0
_FIRST_BASELINE = 20.0  # below the paper's upper edge; R waves point up, so there is more room above than below
_LEFT = 15.0
_PAPER = (_LEFT + STRIP_S * MM_PER_S + 5.0, 4 * _ROW + 5.0)
_MARGIN = 8.0
_CAPTION = 6.0
_SIDE = 92.0
_BARE_PANEL = 34.0

_PAPER_COLOUR, _FINE, _COARSE = "#fffbfa", "#f9dcd9", "#efb1ab"
_INK, _TEXT, _MUTED, _ACCENT = "#101418", "#1c2733", "#66727f", "#1f5f99"
_CHANGED = "#b3261e"
_FOR, _AGAINST = (0.93, 0.49, 0.05), (0.13, 0.44, 0.78)
_SHADE_S = 0.12
_SHADE_REACH = (-8.0, 13.0)  # millimetres below and above the baseline


@dataclass(frozen=True, eq=False)
class Shade:
    """Values that are drawn as colour behind the traces.

    Attributes
    ----------
    values : float32, shape (leads=12, samples)
        Above 0 orange, below 0 blue.
    sampling_rate_hz : float
    """

    values: NDArray[np.float32]
    sampling_rate_hz: float


@dataclass(frozen=True)
class Panel:
    """One row of a search page: an ECG (or none) beside its words.

    Attributes
    ----------
    heading : str
        Large first line ("Query", "1").
    score : str
        Shown at the end of the heading's line; may be empty.
    facts : sequence of str
        Short lines under the heading: ids, vitals, labels.
    text : str
        Report or query text; wrapped, and cut with a note of how much is left out.
    ecg : Ecg, optional
    marks : mapping of str to str
        What changed in a lead (``"QRS"``), drawn beside its name.
    shade : Shade, optional
    """

    heading: str
    score: str = ""
    facts: Sequence[str] = ()
    text: str = ""
    ecg: Ecg | None = None
    marks: Mapping[str, str] = field(default_factory=dict)
    shade: Shade | None = None


def ecg_figure(ecg: Ecg, *, title: str = "", start_s: float = 0.0) -> Figure:
    """Draw one ECG on a page of its own.

    Parameters
    ----------
    ecg : Ecg
    title : str
        Line above the paper.
    start_s : float
        Where the drawn window of 10 s begins.

    Raises
    ------
    SignalError
        ``start_s`` lies outside the recording.
    """
    width, height = _PAPER
    top = 7.0 if title else 0.0
    axes = _page(width + 2 * _MARGIN, height + 2 * _MARGIN + _CAPTION + top)
    if title:
        line = wrap(title, 11, width, max_lines=1)[0]
        _write(axes, _MARGIN, 2 * _MARGIN + _CAPTION + height + top - 10.0, line, size=11, weight="bold")
    _draw_paper(axes, ecg, x=_MARGIN, y=_MARGIN + _CAPTION, start_s=start_s)
    _write(axes, _MARGIN, _MARGIN + 1.0, _caption(ecg, start_s), size=7.5, colour=_MUTED)
    return _figure_of(axes)


def search_figure(panels: Sequence[Panel], *, title: str = "Search result", footer: str = "") -> Figure:
    """Draw the query and its hits below each other, each ECG true to scale beside its words.

    Parameters
    ----------
    panels : sequence of Panel
        The query first, then the hits, best first.
    title, footer : str
        Lines above and below all panels.
    """
    heights = [_PAPER[1] + _CAPTION if panel.ecg is not None else _BARE_PANEL for panel in panels]
    gap = 7.0
    width = _PAPER[0] + _SIDE + 2 * _MARGIN
    height = sum(heights) + gap * (len(panels) - 1) + 2 * _MARGIN + 18.0
    axes = _page(width, height)
    top = height - _MARGIN
    _write(axes, _MARGIN, top - 5.0, wrap(title, 15, width - 2 * _MARGIN, max_lines=1)[0], size=15, weight="bold")
    top -= 11.0
    for panel, tall in zip(panels, heights, strict=True):
        _draw_panel(axes, panel, top=top, height=tall)
        top -= tall + gap
    for line in wrap(footer, 7.5, width - 2 * _MARGIN, max_lines=1):
        _write(axes, _MARGIN, _MARGIN - 2.0, line, size=7.5, colour=_MUTED)
    return _figure_of(axes)


def png_bytes(figure: Figure, *, dpi: int = DEFAULT_DPI) -> bytes:
    """Render a figure; the PNG states its dpi, so that it prints at true size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def save_png(figure: Figure, path: Path, *, dpi: int = DEFAULT_DPI) -> None:
    """Write a figure as PNG; the file appears whole or not at all."""
    content = png_bytes(figure, dpi=dpi)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def _page(width: float, height: float) -> Axes:
    """Return axes over a whole page whose data unit is one millimetre."""
    figure = Figure(figsize=(width / MM_PER_INCH, height / MM_PER_INCH), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_axis_off()
    return axes


def _figure_of(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)  # noqa: S101 - tells the type checker what _page made
    return figure


def _draw_panel(axes: Axes, panel: Panel, *, top: float, height: float) -> None:
    paper_width = _PAPER[0]
    if panel.ecg is not None:
        _draw_paper(axes, panel.ecg, x=_MARGIN, y=top - _PAPER[1], start_s=0.0, panel=panel)
        _write(axes, _MARGIN, top - _PAPER[1] - 4.5, _caption(panel.ecg, 0.0), size=7.5, colour=_MUTED)
        left, width = _MARGIN + paper_width + 6.0, _SIDE - 6.0
    else:
        axes.add_patch(Rectangle((_MARGIN, top - height), paper_width + _SIDE, height, facecolor="#f4f6f8", lw=0))
        left, width = _MARGIN + 6.0, paper_width + _SIDE - 12.0
        top -= 3.0
    bottom = top - (_PAPER[1] if panel.ecg is not None else height - 5.0)
    axes.plot([left, left + width], [top, top], color=_ACCENT, lw=1.6, solid_capstyle="butt")
    y = top - 6.5
    _write(axes, left, y, wrap(panel.heading, 14, width * 0.7, max_lines=1)[0], size=14, weight="bold", colour=_ACCENT)
    _write(axes, left + width, y, legible(panel.score), size=11, weight="bold", align="right")
    y -= 6.0
    for fact in panel.facts:
        for line in wrap(fact, 8.5, width, max_lines=3):
            y = _write_line(axes, left, y, line, size=8.5, colour=_MUTED)
    y -= 1.5
    room = max(1, int((y - bottom) / _line_height(9.5)) + 1)
    for line in wrap(panel.text, 9.5, width, max_lines=room):
        y = _write_line(axes, left, y, line, size=9.5, colour=_TEXT)


def _draw_paper(axes: Axes, ecg: Ecg, *, x: float, y: float, start_s: float, panel: Panel | None = None) -> None:
    """Draw paper, calibration pulses, leads and rhythm strip with the lower left corner at (x, y)."""
    if not 0 <= start_s < ecg.duration_s:
        raise SignalError(
            f"start is {start_s:g} s, expected 0 to less than the recording's {ecg.duration_s:g} s", field="start_s"
        )
    width, height = _PAPER
    axes.add_patch(Rectangle((x, y), width, height, facecolor=_PAPER_COLOUR, lw=0))
    for step, colour, thickness in ((1.0, _FINE, 0.35), (5.0, _COARSE, 0.6)):
        axes.add_collection(LineCollection(_grid(x, y, width, height, step), colors=colour, linewidths=thickness))
    clip = Rectangle((x, y), width, height, transform=axes.transData)
    marks = panel.marks if panel else {}
    shade = _colours(panel.shade) if panel and panel.shade else None
    left = x + _LEFT
    consecutive = ecg.duration_s - start_s >= STRIP_S - 1e-6
    for row, names in enumerate(_GRID_LEADS):
        baseline = y + height - _FIRST_BASELINE - row * _ROW
        _draw_pulse(axes, x, baseline, clip)
        for column, name in enumerate(names):
            begin = start_s + (column * COLUMN_S if consecutive else 0.0)
            place = left + column * COLUMN_S * MM_PER_S
            if shade is not None and panel and panel.shade and name in ecg.leads:
                _draw_shade(axes, shade[LEADS.index(name)], panel.shade, place, baseline, begin)
            _draw_lead(axes, ecg, name, place, baseline, (begin, COLUMN_S), clip, changed=marks.get(name, ""))
    strip = y + height - _FIRST_BASELINE - len(_GRID_LEADS) * _ROW
    rhythm = _RHYTHM_LEAD if _RHYTHM_LEAD in ecg.leads else ecg.leads[0]
    _draw_pulse(axes, x, strip, clip)
    _draw_lead(axes, ecg, rhythm, left, strip, (start_s, STRIP_S), clip)


def _grid(x: float, y: float, width: float, height: float, step: float) -> list[tuple[tuple[float, float], ...]]:
    across = [((x + at, y), (x + at, y + height)) for at in np.arange(0, width + step / 2, step)]
    down = [((x, y + at), (x + width, y + at)) for at in np.arange(0, height + step / 2, step)]
    return [*across, *down]


def _draw_pulse(axes: Axes, x: float, baseline: float, clip: Rectangle) -> None:
    """Draw the calibration pulse: 1 mV high, 0.2 s wide, with 0.1 s of baseline on both sides."""
    foot, wide, tall = 0.1 * MM_PER_S, 0.2 * MM_PER_S, MM_PER_MV
    start = x + 2.5
    xs = [start, start + foot, start + foot, start + foot + wide, start + foot + wide, start + 2 * foot + wide]
    ys = [baseline, baseline, baseline + tall, baseline + tall, baseline, baseline]
    (line,) = axes.plot(xs, ys, color=_INK, lw=0.9, solid_joinstyle="miter", gid="calibration")
    line.set_clip_path(clip)


def _colours(shade: Shade) -> NDArray[np.float64]:
    """Return values as colours, smoothed, the strongest hundredth opaque: float64, shape (leads, samples, 4)."""
    width = max(1, round(_SHADE_S * shade.sampling_rate_hz))
    smooth = np.stack([np.convolve(row, np.ones(width) / width, mode="same") for row in shade.values])
    strength = np.abs(smooth) / (np.percentile(np.abs(smooth), 99) or 1.0)
    colours = np.where(smooth[..., None] > 0, _FOR, _AGAINST)
    return np.concatenate([colours, 0.6 * np.clip(strength, 0, 1)[..., None]], axis=-1)


def _draw_shade(
    axes: Axes, colours: NDArray[np.float64], shade: Shade, x: float, baseline: float, begin_s: float
) -> None:
    first, last = (round(moment * shade.sampling_rate_hz) for moment in (begin_s, begin_s + COLUMN_S))
    shown = colours[first:last]
    if len(shown):
        wide = len(shown) / shade.sampling_rate_hz * MM_PER_S
        below, above = (baseline + reach for reach in _SHADE_REACH)
        axes.imshow(
            shown[None],
            extent=(x, x + wide, below, above),
            aspect="auto",
            interpolation="bilinear",
            gid="saliency",
            zorder=1.5,  # above the paper, below the trace
        )


def _draw_lead(
    axes: Axes,
    ecg: Ecg,
    name: str,
    x: float,
    baseline: float,
    window_s: tuple[float, float],
    clip: Rectangle,
    *,
    changed: str = "",
) -> None:
    begin_s, length_s = window_s
    present = name in ecg.leads
    colour = _INK if present else _MUTED
    axes.plot([x, x], [baseline - 2.0, baseline + 2.0], color=_MUTED, lw=0.7)
    label = f"{name} {changed} changed" if changed else name
    colour = _CHANGED if changed else colour
    _write(axes, x + 1.2, baseline + 8.2, label, size=8.5, weight="bold", colour=colour, halo_on_paper=True)
    if not present:
        axes.plot([x + 2, x + length_s * MM_PER_S - 2], [baseline, baseline], color=_MUTED, lw=0.7, ls=(0, (4, 4)))
        _write(axes, x + 1.2, baseline + 1.2, "not recorded", size=7.5, colour=_MUTED)
        return
    trace = trace_mm(ecg, name, begin_s, length_s)
    (line,) = axes.plot(x + trace[0], baseline + trace[1], color=_INK, lw=0.85, solid_joinstyle="round", gid=name)
    line.set_clip_path(clip)


def trace_mm(ecg: Ecg, lead: str, start_s: float, length_s: float) -> NDArray[np.float64]:
    """Return a lead's trace on paper.

    Returns
    -------
    float64, shape (2, samples), mm
        Right of the window's start, and above the lead's median over the window.
    """
    first = round(start_s * ecg.sampling_rate_hz)
    last = min(first + round(length_s * ecg.sampling_rate_hz) + 1, ecg.signal.shape[1])
    values = ecg.signal[LEADS.index(lead), first:last].astype(np.float64)
    right = np.arange(len(values)) / ecg.sampling_rate_hz * MM_PER_S
    return np.stack([right, (values - np.median(values)) * MM_PER_MV])


def _caption(ecg: Ecg, start_s: float) -> str:
    end_s = min(start_s + STRIP_S, ecg.duration_s)
    window = f"{start_s:g}-{end_s:g} s of {ecg.duration_s:g} s"
    leads = f"{len(ecg.leads)} leads" if len(ecg.leads) > 1 else "1 lead"
    return f"25 mm/s    10 mm/mV    {window} at {ecg.sampling_rate_hz:g} Hz, {leads}    unfiltered, median at baseline"


def _write_line(axes: Axes, x: float, y: float, line: str, *, size: float, colour: str) -> float:
    _write(axes, x, y, line, size=size, colour=colour)
    return y - _line_height(size)


def _line_height(size: float) -> float:
    return size * MM_PER_POINT * 1.35


def _write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float,
    weight: str = "normal",
    colour: str = _TEXT,
    align: str = "left",
    halo_on_paper: bool = False,
) -> None:
    # parse_math=False: a dollar sign in a report is a dollar sign.
    halo = [withStroke(linewidth=2.0, foreground=_PAPER_COLOUR)] if halo_on_paper else None
    axes.text(
        x,
        y,
        text,
        fontsize=size,
        fontweight=weight,
        color=colour,
        ha=align,
        parse_math=False,
        path_effects=halo,
        zorder=3,
    )
