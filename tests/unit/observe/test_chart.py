import xml.etree.ElementTree as ET

import pytest

from rlflow.observe.chart import HEIGHT, WIDTH, line_chart, stacked_chart, ticks


def coordinates(element):
    return [tuple(map(float, pair.split(","))) for pair in element.get("points").split()]


def test_ticks_are_round_and_inside():
    assert ticks(0, 1) == [0.0, 0.5, 1.0]
    assert ticks(-0.06, 1.06) == [0.0, 0.5, 1.0]
    assert ticks(13, 87) == [20.0, 40.0, 60.0, 80.0]
    assert ticks(1e-6, 9e-6) == [2e-6, 4e-6, 6e-6, 8e-6]


@pytest.mark.parametrize("points", [[(1, 0.5)], [(1, 0.0), (2, 0.0)], [(1, -5.0), (1000, 1e9)], [(3, 1e-12), (4, 2e-12)]])
def test_every_point_lies_on_the_drawing(points):
    line = ET.fromstring(line_chart(points, "loss")).find("polyline")
    drawn = coordinates(line)
    assert len(drawn) == len(points)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in drawn)


def test_higher_values_are_drawn_higher_and_points_have_tooltips():
    svg = ET.fromstring(line_chart([(1, 0.25), (2, 0.75)], "reward_mean"))
    (x1, y1), (x2, y2) = coordinates(svg.find("polyline"))
    assert x1 < x2 and y1 > y2
    assert [dot.findtext("title") for dot in svg.iter("circle")] == [
        "step 1: reward_mean 0.25",
        "step 2: reward_mean 0.75",
    ]


def test_a_single_step_has_an_area():
    area = ET.fromstring(stacked_chart([7], {"learn": [1.0]}, "seconds")).find("polygon")
    xs, ys = zip(*coordinates(area), strict=True)
    assert max(xs) - min(xs) > 10 and max(ys) - min(ys) > 10


def test_areas_lie_on_each_other():
    svg = ET.fromstring(stacked_chart([1, 2], {"generate": [2.0, 4.0], "learn": [1.0, 1.0]}, "seconds"))
    lower, upper = (coordinates(area) for area in svg.iter("polygon"))
    assert lower[:2] == list(reversed(upper[2:]))
    floor = lower[3][1]
    height = [floor - y for _, y in (lower[0], lower[1], upper[0], upper[1])]
    assert height[1] == pytest.approx(2 * height[0], abs=0.2)
    assert height[2] == pytest.approx(1.5 * height[0], abs=0.2)
    assert height[3] == pytest.approx(2.5 * height[0], abs=0.2)
