"""Figures as SVG text: pure functions of a Report, themed by the page's CSS variables.

matplotlib is imported inside, without pyplot and its global state: only `--html` pays for it.
The output is deterministic and holds no URL, date, or unescaped text.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from diag.record.schema import LOCAL_PHASES, PHASES
from diag.reports import format as f
from diag.reports.model import MemorySeries, Report
from diag.reports.series import Reduced, reduced, spans
from diag.reports.waterfall import Bar, waterfall_bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What a figure may be coloured with. matplotlib is given stand-in colours; the page's CSS
# variables of these names replace them, so that one SVG serves light and dark.
ROLES = (
    "ink", "muted", "grid", "level", "loss", "gain", "shade", "outside",
    *(f"phase-{phase}" for phase in PHASES),
    *(f"line-{i}" for i in range(8)),
)  # fmt: skip
COLOUR = {role: f"#0b0c{i:02x}" for i, role in enumerate(ROLES)}
_ROLE_OF = {colour: role for role, colour in COLOUR.items()}

WIDTH_IN = 8.6
_ROW_IN = 0.3
_MOST_ROWS = 64
_MOST_LINES = 8
_LEGEND: dict[str, Any] = {
    "loc": "outside upper left", "ncols": 8, "handlelength": 1.2, "columnspacing": 1.4,
}  # fmt: skip


def waterfall(report: Report) -> str | None:
    """From the ideal speed-up down to the measured one, a bar per term; None when unknown."""
    bars = waterfall_bars(report)
    if not bars:
        return None
    return _svg("waterfall", len(bars) * _ROW_IN + 0.45, lambda figure: _waterfall(figure, bars))


def phases(report: Report) -> str | None:
    """Each rank's step as a stack of phases; the slowest ranks only when there are many."""
    rows = report.per_rank
    if not rows:
        return None
    if len(rows) > _MOST_ROWS:
        slowest = sorted(rows, key=lambda row: row.phases_ms.get("exposed_comm", 0.0))
        rows = tuple(sorted(slowest[:_MOST_ROWS], key=lambda row: row.rank))
    row_in = _ROW_IN if len(rows) <= 16 else 0.12
    labels = [str(row.rank) for row in rows]
    table = [[row.phases_ms.get(phase, 0.0) for phase in PHASES] for row in rows]
    return _svg("phases", len(rows) * row_in + 0.75, lambda figure: _phases(figure, labels, table))


def step_times(report: Report) -> str | None:
    """Step time over the run; steps left out are shaded by their reason."""
    series = report.step_series
    if series is None or not series.index:
        return None
    measured = report.step_measured_ms
    kept = reduced(series)
    return _svg("steps", 2.5, lambda figure: _step_times(figure, kept, measured))


def memory(report: Report) -> str | None:
    """Each rank's memory over time; the band of all and the highest when ranks are many."""
    series = [s for s in report.memory_series if s.seconds]
    if not series:
        return None
    return _svg("memory", 2.3, lambda figure: _memory(figure, series))


def _svg(name: str, height_in: float, draw: Callable[[Figure], None]) -> str:
    """Draw on a fresh figure with matplotlib's own defaults, whatever the user configured."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(), warnings.catch_warnings():
        # The browser's fonts draw the text; what matplotlib's own lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        mpl.rcdefaults()
        params: Any = mpl.rcParams
        params.update(_style(name))
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    return _inline(out.getvalue(), name)


def _style(name: str) -> dict[str, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,  # a run called "$x$" is not a formula
        "text.usetex": False,
        "font.family": ["DejaVu Sans"],
        "font.size": 9,
        "axes.edgecolor": COLOUR["grid"],
        "axes.labelcolor": COLOUR["muted"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": COLOUR["ink"],
        "xtick.color": COLOUR["muted"],
        "ytick.color": COLOUR["muted"],
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "grid.color": COLOUR["grid"],
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "legend.frameon": False,
    }


def _inline(svg: str, name: str) -> str:
    """An <svg> element for an HTML page: no prologue, URL, fixed size, or clashing id."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<style type="text/css">.*?</style>', "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace("xlink:href", "href")
    svg = svg.replace("'DejaVu Sans'", "var(--font)")
    svg = re.sub(r"#0b0c[0-9a-f]{2}", lambda m: f"var(--{_ROLE_OF[m.group(0)]})", svg)
    return svg.replace("<svg", f'<svg class="figure {name}" role="img" aria-label="{name}"', 1)


def _waterfall(figure: Figure, bars: Sequence[Bar]) -> None:
    axes = figure.add_subplot()
    low = min(0.0, *(min(bar.start, bar.end) for bar in bars))
    high = max(max(bar.start, bar.end) for bar in bars)
    for y, bar in enumerate(bars):
        left, width = min(bar.start, bar.end), abs(bar.end - bar.start)
        axes.barh(y, width, left=left, height=0.62, color=COLOUR[bar.kind])
        axes.text(
            max(bar.start, bar.end) + 0.008 * (high - low),
            y,
            bar.value,
            va="center",
            weight="bold" if bar.kind == "level" else "normal",
        )
        if y + 1 < len(bars):
            axes.plot([bar.end, bar.end], [y - 0.31, y + 1.31], color=COLOUR["muted"], lw=0.7)
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars], color=COLOUR["ink"])
    axes.set_xlim(low, high + 0.16 * (high - low))
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}x")
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def _phases(figure: Figure, labels: Sequence[str], table: Sequence[Sequence[float]]) -> None:
    axes = figure.add_subplot()
    left = [0.0] * len(labels)
    # Waiting goes last, so that each rank's own work is one unbroken bar.
    for phase in (*LOCAL_PHASES, "exposed_comm"):
        number = PHASES.index(phase)
        values = [row[number] for row in table]
        if max(values) <= 0:
            continue
        colour = COLOUR[f"phase-{phase}"]
        axes.barh(range(len(labels)), values, left=left, height=0.74, color=colour, label=phase)
        left = [a + b for a, b in zip(left, values, strict=True)]
    every = 1 if len(labels) <= 16 else 8
    axes.set_yticks(range(0, len(labels), every), labels[::every], color=COLOUR["ink"])
    axes.set_ylabel("rank")
    axes.set_xlabel("ms of each step")
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(0, max(left) * 1.01)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    figure.legend(**_LEGEND)


def _step_times(figure: Figure, kept: Reduced, measured: float | None) -> None:
    axes = figure.add_subplot()
    for number, span in enumerate(spans(kept)):
        label = None if number else "left out"
        axes.axvspan(span.first - 0.5, span.last + 0.5, color=COLOUR["shade"], lw=0, label=label)
    used = [high for high, reason in zip(kept.high, kept.excluded, strict=True) if reason is None]
    top = 1.25 * max(used or kept.high)
    axes.set_ylim(0, top)
    _draw_line(axes, kept)
    _mark_outside(axes, kept, top)
    if measured is not None:
        label = f"mean of used steps, {f.ms(measured)}"
        axes.axhline(measured, color=COLOUR["loss"], lw=1, ls=(0, (4, 3)), label=label)
    axes.set_xlim(kept.index[0] - 0.5, kept.index[-1] + 0.5)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("ms")
    axes.grid(axis="y")
    figure.legend(**_LEGEND)


def _draw_line(axes: Axes, kept: Reduced) -> None:
    axes.plot(kept.index, kept.high, color=COLOUR["line-0"], lw=1, label="step")
    if kept.low != kept.high:
        axes.fill_between(kept.index, kept.low, kept.high, color=COLOUR["line-0"], lw=0, alpha=0.4)


def _mark_outside(axes: Axes, kept: Reduced, top: float) -> None:
    """A mark at the upper edge for each step that the axis cuts off."""
    cut = [x for x, y in zip(kept.index, kept.high, strict=True) if y > top]
    if cut:
        axes.plot(cut, [top * 0.975] * len(cut), "^", ms=4, color=COLOUR["outside"], mew=0)


def _memory(figure: Figure, series: Sequence[MemorySeries]) -> None:
    axes = figure.add_subplot()
    scale, unit = f.byte_unit(max(max(one.bytes) for one in series))
    lines = [(one, [b / scale for b in one.bytes]) for one in series]
    if len(lines) <= _MOST_LINES:
        for number, (one, values) in enumerate(lines):
            axes.plot(one.seconds, values, color=COLOUR[f"line-{number}"], label=f"rank {one.rank}")
    else:
        _memory_crowd(axes, lines)
    figure.legend(**_LEGEND)
    axes.set_ylim(0, 1.08 * max(max(values) for _, values in lines))
    axes.set_xlabel("seconds since the run began")
    axes.set_ylabel(unit)
    axes.grid(axis="y")


def _memory_crowd(axes: Axes, lines: Sequence[tuple[MemorySeries, list[float]]]) -> None:
    """Many ranks: all thin, the highest named."""
    highest, peak = max(lines, key=lambda line: max(line[1]))
    for number, (one, values) in enumerate(lines):
        label = None if number else f"all {len(lines)} ranks"
        axes.plot(one.seconds, values, color=COLOUR["outside"], lw=0.5, label=label)
    label = f"rank {highest.rank}, the highest"
    axes.plot(highest.seconds, peak, color=COLOUR["line-0"], lw=1.5, label=label)
