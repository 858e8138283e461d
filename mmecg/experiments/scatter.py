"""A picture of places in the plane, coloured by one grouping a panel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure as Picture
from numpy.typing import NDArray

# Colours that people with colour blindness tell apart: Okabe and Ito, Color Universal Design (2008).
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#000000",
    "#7F3C8D",
    "#A5AA99",
)


def draw_map(places: NDArray[np.float32], groupings: Mapping[str, Sequence[str]], title: str) -> Picture:
    """Draw the same places once a grouping, beside each other; the commonest group is drawn first.

    Parameters
    ----------
    places : float32, shape (n, 2)
    groupings : mapping of str to sequence of str, length n
        Group of each place, by the grouping's name.
    title : str
    """
    figure = Picture(figsize=(4.2 * len(groupings), 4.6), layout="constrained")
    for axes, (name, groups) in zip(
        figure.subplots(1, len(groupings), squeeze=False)[0], groupings.items(), strict=True
    ):
        ordered = [group for group, _ in Counter(groups).most_common()]
        for place, group in enumerate(ordered):
            inside = np.array([one == group for one in groups])
            colour = _COLOURS[place % len(_COLOURS)]
            axes.scatter(*places[inside].T, s=5, color=colour, label=f"{group} ({inside.sum()})", linewidths=0)
        axes.set_title(name, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3, fontsize=7, markerscale=2, frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure


__all__ = ["Picture", "draw_map"]
