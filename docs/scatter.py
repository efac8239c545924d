"""A scatter plot as SVG text: enough for two figures, and no dependency."""

from html import escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 560, 400, 62, 48, 30, 170
_COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#8a5fa8", "#c9962b", "#5b6770", "#b03a75")

Point = tuple[str, float, float, str]
"""Group, x, y, and tooltip."""


def scatter(title: str, axes: tuple[str, str], points: list[Point], diagonal: bool = False) -> str:
    """An SVG page with one colour for each group.

    Args:
        title: above the plot.
        axes: labels of x and y.
        points: what to draw.
        diagonal: both axes from 0 to 1, and the line of agreement.
    """
    x_range, y_range = ((0.0, 1.0) if diagonal else _nice([p[k] for p in points]) for k in (1, 2))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        up = (y - y_range[0]) / (y_range[1] - y_range[0])
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _BOTTOM - _TOP),
        )

    groups = list(dict.fromkeys(p[0] for p in points))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="18" font-weight="bold">{escape(title)}</text>',
    ]
    for k in range(6):
        x, y = (r[0] + k * (r[1] - r[0]) / 5 for r in (x_range, y_range))
        (px, _), (_, py) = place(x, y_range[0]), place(x_range[0], y)
        low, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        parts.append(
            f'<path d="M{px:.1f} {_TOP}V{low}M{_LEFT} {py:.1f}H{right}" stroke="#e4e4e4"/>'
        )
        parts.append(f'<text x="{px:.1f}" y="{low + 16}" text-anchor="middle">{x:.2g}</text>')
        parts.append(f'<text x="{_LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{y:.2g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 10}" text-anchor="middle">{escape(axes[0])}</text>'
    )
    parts.append(
        f'<text transform="translate(16 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(axes[1])}</text>"
    )
    if diagonal:
        (ax, ay), (bx, by) = place(0, 0), place(1, 1)
        parts.append(f'<path d="M{ax} {ay}L{bx} {by}" stroke="#999" stroke-dasharray="4 3"/>')
    for group, x, y, tooltip in points:
        px, py = place(x, y)
        colour = _COLOURS[groups.index(group) % len(_COLOURS)]
        parts.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4.5" fill="{colour}" fill-opacity="0.75">'
            f"<title>{escape(tooltip)}</title></circle>"
        )
    for n, group in enumerate(groups):
        y, colour = _TOP + 12 + 18 * n, _COLOURS[n % len(_COLOURS)]
        parts.append(f'<circle cx="{_WIDTH - _RIGHT + 20}" cy="{y - 4}" r="4.5" fill="{colour}"/>')
        parts.append(f'<text x="{_WIDTH - _RIGHT + 30}" y="{y}">{escape(group)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _nice(values: list[float]) -> tuple[float, float]:
    """A range that contains the values, rounded to tenths."""
    low, high = min(values), max(values)
    return max(0.0, int(10 * low) / 10), (int(10 * high) + 1) / 10
