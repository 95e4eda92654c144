"""Small SVG charts for the report; their colours come from the page, so that light and dark both work."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 10, 34
MAX_MARKED_POINTS = 150
"""Up to this many points each gets a dot with a tooltip; more dots would hide the line and bloat the page."""

Points = Sequence[tuple[float, float]]


def line_chart(points: Points, label: str) -> str:
    """An SVG line through (step, value) points; `label` names the values, for screen readers and tooltips."""
    assert points, "a chart needs a point"
    xs, ys = [x for x, _ in points], [y for _, y in points]
    frame = _Frame(min(xs), max(xs), *_padded(min(ys), max(ys)))
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    body = f'<polyline class="line" points="{path}"/>'
    if len(points) <= MAX_MARKED_POINTS:
        body += "".join(_dot(frame, x, y, label) for x, y in points)
    return _svg(label, frame.axes() + body)


def stacked_chart(steps: Sequence[float], series: Mapping[str, Sequence[float]], label: str) -> str:
    """An SVG of areas on top of each other, first series lowest; each has one value per step, in one unit."""
    if len(steps) == 1:  # an area needs a width
        steps = [steps[0] - 0.5, steps[0] + 0.5]
        series = {name: [*values, *values] for name, values in series.items()}
    totals = [sum(values) for values in zip(*series.values(), strict=True)]
    frame = _Frame(min(steps), max(steps), 0.0, _padded(0.0, max(totals))[1])
    floor = [0.0] * len(steps)
    areas = []
    for index, (name, values) in enumerate(series.items()):
        ceiling = [low + value for low, value in zip(floor, values, strict=True)]
        areas.append(_area(frame, steps, floor, ceiling, f'class="area c{index % 8}"', name))
        floor = ceiling
    return _svg(label, "".join(areas) + frame.axes())


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    spacing = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * 0.999)
    first = math.ceil(low / spacing - 1e-9)
    last = math.floor(high / spacing + 1e-9)
    return [round(index * spacing, 12) for index in range(first, last + 1)]


class _Frame:
    """Where a value lies on the drawing, and the axes around it."""

    def __init__(self, x_low: float, x_high: float, y_low: float, y_high: float) -> None:
        self.x_low, self.x_high = (x_low, x_high) if x_high > x_low else (x_low - 1, x_high + 1)
        self.y_low, self.y_high = y_low, y_high

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)

    def axes(self) -> str:
        rows = "".join(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.y(v):.1f}" y2="{self.y(v):.1f}"/>'
            f'<text x="{LEFT - 6}" y="{self.y(v) + 4:.1f}" text-anchor="end">{v:g}</text>'
            for v in ticks(self.y_low, self.y_high)
        )
        columns = "".join(
            f'<text x="{self.x(v):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{v:g}</text>'
            for v in ticks(self.x_low, self.x_high, 6)
            if v == int(v)
        )
        centre = (LEFT + WIDTH - RIGHT) / 2
        return f'{rows}{columns}<text x="{centre}" y="{HEIGHT - 4}" text-anchor="middle">step</text>'


def _padded(low: float, high: float) -> tuple[float, float]:
    """The range with some air; a constant gets a range around it."""
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - air, high + air


def _area(
    frame: _Frame,
    steps: Sequence[float],
    floor: Sequence[float],
    ceiling: Sequence[float],
    attributes: str,
    name: str,
) -> str:
    upper = [f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in zip(steps, ceiling, strict=True)]
    lower = [f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in zip(steps, floor, strict=True)]
    points = " ".join([*upper, *reversed(lower)])
    return f'<polygon {attributes} points="{points}"><title>{escape(name)}</title></polygon>'


def _dot(frame: _Frame, x: float, y: float, label: str) -> str:
    tip = f"<title>step {x:g}: {escape(label)} {y:.5g}</title>"
    return f'<circle class="dot" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.5">{tip}</circle>'


def _svg(label: str, body: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)} by step">{body}</svg>'
