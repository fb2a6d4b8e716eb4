"""The timeline of a switch as text for a terminal and as an SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from trio_compute.embedded.failover import FailoverReport, Stretch

BAR_COLUMNS = 48
WIDTH, LEFT, RIGHT, TOP, ROW = 960, 300, 90, 64, 30
COLOURS = {"primary": "#2f6db5", "secondary": "#3b8f5a", "writes": "#c0453b"}


def _window(stretches: Sequence[Stretch]) -> tuple[float, float]:
    begin = min(stretch.start_ms for stretch in stretches)
    end = max(stretch.start_ms + stretch.duration_ms for stretch in stretches)
    return begin, max(end - begin, 1.0)


def text_chart(report: FailoverReport) -> str:
    """Return one line for each stretch, its bar in place."""
    begin, length = _window(report.timeline)
    lines = []
    for stretch in report.timeline:
        at = round((stretch.start_ms - begin) / length * BAR_COLUMNS)
        bar = max(1, round(stretch.duration_ms / length * BAR_COLUMNS))
        name = f"{stretch.lane:<10}{stretch.name:<28}"
        lines.append(
            f"  {name}{' ' * at}{'█' * bar}{' ' * max(0, BAR_COLUMNS - at - bar)}{stretch.duration_ms:8.0f} ms"
        )
    return "\n".join(lines)


def svg_chart(report: FailoverReport) -> str:
    """Return a drawing of the timeline with a line of figures above it."""
    begin, length = _window(report.timeline)
    scale = (WIDTH - LEFT - RIGHT) / length
    height = TOP + ROW * len(report.timeline) + 24
    figures = (
        f"write gap {report.write_gap_ms:.0f} ms, {report.rows_lost} of {report.rows_written} acknowledged rows lost"
    )
    rows = [
        _row(stretch, TOP + ROW * number, LEFT + (stretch.start_ms - begin) * scale, stretch.duration_ms * scale)
        for number, stretch in enumerate(report.timeline)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"',
            ' font-family="system-ui, sans-serif" font-size="13">',
            f"<title>One switch: {escape(figures)}</title>",
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            '<text x="16" y="26" font-size="16" font-weight="600" fill="#1d2330">A restart nobody notices</text>',
            f'<text x="16" y="46" fill="#555d6b">{escape(figures)}</text>',
            *rows,
            "</svg>",
            "",
        ]
    )


def _row(stretch: Stretch, y: float, x: float, width: float) -> str:
    colour = COLOURS.get(stretch.lane, "#777777")
    middle = y + ROW / 2 + 4
    shown = max(width, 2.0)
    return (
        f'<text x="16" y="{middle:.1f}" fill="{colour}" font-weight="600">{escape(stretch.lane)}</text>'
        f'<text x="112" y="{middle:.1f}" fill="#1d2330">{escape(stretch.name)}</text>'
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y + ROW:.1f}" y2="{y + ROW:.1f}" stroke="#e4e7ec"/>'
        f'<rect x="{x:.1f}" y="{y + 6:.1f}" width="{shown:.1f}" height="{ROW - 12}" rx="3" fill="{colour}"/>'
        f'<text x="{x + shown + 6:.1f}" y="{middle:.1f}" fill="#555d6b">{stretch.duration_ms:.0f} ms</text>'
    )
