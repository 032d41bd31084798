"""Charts as SVG without text; they stretch with the page, which has the labels. No I/O."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from pipeline.monitor.figures import bin_floor

HEIGHT = 100.0
# Colours of a cell, by share; the page's style sheet has a class for each.
SHADES = 5


class Cell(NamedTuple):
    """One span of a `strip`: ``start`` to ``stop``, coloured by ``share`` (0 to 1)."""

    start: float
    stop: float
    share: float
    tooltip: str


def histogram(bins: Mapping[int, int], first: int, last: int) -> Markup:
    """Numbers of traces by `pipeline.monitor.figures.length_bin`, from ``first`` to ``last``."""
    most = max(bins.values(), default=0) or 1
    bars = Markup()
    for number in range(first, last + 1):
        count = bins.get(number, 0)
        if not count:
            continue
        height = max(1.0, count / most * HEIGHT)
        low, high = bin_floor(number), bin_floor(number + 1)
        bars += Markup(
            '<rect x="{:.2f}" y="{:.2f}" width="0.9" height="{:.2f}"><title>{}</title></rect>'
        ).format(
            number - first + 0.05, HEIGHT - height, height,
            f"{count:,} traces of {low:,.0f} to {high:,.0f} tokens",
        )  # fmt: skip
    return _svg("histogram", last - first + 1, HEIGHT, bars)


def line(points: Sequence[tuple[float, float]], width: float, top: float) -> Markup:
    """A line through ``points`` with the area below it; x is up to ``width``, y up to ``top``."""
    if not points:
        return _svg("line", width or 1, HEIGHT, Markup())
    path = " ".join(f"{x:.2f},{HEIGHT - y / (top or 1) * HEIGHT:.2f}" for x, y in points)
    area = f"{points[0][0]:.2f},{HEIGHT} {path} {points[-1][0]:.2f},{HEIGHT}"
    shapes = Markup('<polygon points="{}"/><polyline points="{}"/>').format(area, path)
    return _svg("line", width or 1, HEIGHT, shapes)


def strip(cells: Sequence[Cell], width: float) -> Markup:
    """A row of coloured cells, such as one engine's load over time; x is up to ``width``."""
    rectangles = Markup().join(
        Markup('<rect class="s{}" x="{:.2f}" width="{:.2f}" height="1"><title>{}</title></rect>')
        .format(
            min(SHADES, round(cell.share * SHADES)), cell.start, max(0.0, cell.stop - cell.start),
            cell.tooltip,
        )
        for cell in cells
    )  # fmt: skip
    return _svg("strip", width or 1, 1, rectangles)


def _svg(kind: str, width: float, height: float, shapes: Markup) -> Markup:
    return Markup(
        '<svg class="{}" viewBox="0 0 {:.2f} {:.0f}" preserveAspectRatio="none" role="img">{}</svg>'
    ).format(kind, width, height, shapes)
