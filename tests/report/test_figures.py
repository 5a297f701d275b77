"""report.figures: labels that do not collide, and coordinates that are short."""
import re

import pytest

from mlops_nb.report.figures import figure_html, panels_html, subplots


def labels(html): # Rotation and text of the labels of the horizontal axis
    axis = html[html.index('id="matplotlib.axis_1"'):html.index('id="matplotlib.axis_2"')]
    return re.findall(r'rotate\(([-\d.]+)[^>]*>([^<]*)<', axis)


@pytest.mark.parametrize(("names", "slanted"), [(["a", "b", "c"], False), (["month to month", "two years"] * 3, True)])
def test_names_that_would_collide_are_slanted(names, slanted):
    fig, ax = subplots(3, 2)
    ax.set_xticks(range(len(names)), names)
    found = labels(figure_html(fig, "Names").text)
    assert [text for _, text in found] == names
    assert all((float(angle) != 0) == slanted for angle, _ in found)


def test_numbers_that_would_collide_are_fewer():
    fig, ax = subplots(2, 2)
    ax.set(xlim=(0, 3e6))
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f} kilometres")
    found = labels(figure_html(fig, "Numbers").text)
    assert 1 <= len(found) <= 2 and all(float(angle) == 0 for angle, _ in found)


def test_panels_have_one_heading_and_a_description_each():
    figures, axes = zip(*(subplots(3.7, 2) for _ in range(2)), strict=True)
    for ax, title in zip(axes, ("Left", "Right"), strict=True): ax.set_title(title)
    axes[0].plot([0, 1 / 3], [0, 1 / 7])
    html = panels_html(figures, "<Both>", "How to read it").text
    assert html.count("<figcaption>") == 1 and html.count("<svg") == 2
    assert 'aria-label="Left. &lt;Both&gt;"' in html and 'aria-label="Right. &lt;Both&gt;"' in html
    assert not re.search(r' [dxy]="[^"]*\.\d\d', html)
