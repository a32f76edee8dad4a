"""Heat maps, trees and bars: what they show, and that they leave nothing behind."""

import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from layersurgery.errors import VectorError
from layersurgery.interventions import Zero
from layersurgery.report import dendrogram, heatmap, plot_stability, plot_vector, terminal_heatmap
from layersurgery.search import Stability
from layersurgery.sites import Site, Sites
from layersurgery.surgery import Surgery
from layersurgery.sweeps import ScoreTable
from layersurgery.vectors import InteractionVectors

CHANGES = np.array([[0.125, -0.4, 0.0], [0.02, -0.03, 0.004]])
VECTORS = InteractionVectors({"sum": CHANGES[0], "maps": CHANGES[1]})


def image_of(figure):
    return figure.axes[0].images[0]


def ticks(labels):
    return [label.get_text() for label in labels]


def score_table(sites=3, n=12):
    places = Sites(Site(f"h.{layer}.attn", layer=layer) for layer in range(sites))
    correct = np.random.default_rng(0).integers(0, 2, (sites + 1, n)).astype(float)
    surgeries = tuple(Surgery(at=site, do=Zero()) for site in places)
    return ScoreTable(places, surgeries, tuple(map(str, range(n))), correct)


def test_the_heat_map_shows_points_with_labels():
    figure = heatmap(VECTORS, title="two tasks")
    axes = figure.axes[0]
    assert np.allclose(image_of(figure).get_array(), CHANGES * 100)
    assert ticks(axes.get_yticklabels()) == ["sum", "maps"]
    assert ticks(axes.get_xticklabels()) == ["0", "1", "2"]
    assert axes.get_title(loc="left") == "two tasks"
    assert "points" in figure.axes[1].get_ylabel()


def test_red_is_better_blue_is_worse_and_the_centre_is_zero():
    image = image_of(heatmap(VECTORS))
    assert image.norm.vmin == -image.norm.vmax
    colour = image.cmap(image.norm(np.array([10.0, -10.0, 0.0])))
    assert colour[0, 0] > colour[0, 2]
    assert colour[1, 2] > colour[1, 0]
    assert np.ptp(colour[2, :3]) < 0.02


def test_no_gain_is_clipped_but_a_heavy_loss_may_be():
    figure = heatmap(VECTORS)
    assert image_of(figure).norm.vmax == pytest.approx(12.5)
    wiped_out = np.full((5, 10), -0.9)
    wiped_out[:, 3:] = 0.02
    assert image_of(heatmap(wiped_out)).norm.vmax == pytest.approx(90)
    wiped_out[:, 2:] = 0.02
    assert image_of(heatmap(wiped_out)).norm.vmax == pytest.approx(2)


@pytest.mark.parametrize(
    ("changes", "limit"), [([[0.0]], 1), ([[0.002]], 0.2), ([[np.nan]], 1), ([[0.002] * 9 + [-0.5]], 1)]
)
def test_the_range_of_colours_never_vanishes(changes, limit):
    assert image_of(heatmap(changes)).norm.vmax == pytest.approx(limit)


def test_numbers_are_written_where_there_is_room():
    few = heatmap(VECTORS)
    assert [text.get_text() for text in few.axes[0].texts] == ["+12.5", "-40.0", "0", "+2.0", "-3.0", "+0.4"]
    assert not heatmap(np.zeros((2, 32))).axes[0].texts
    assert not heatmap(VECTORS, numbers=False).axes[0].texts


@pytest.mark.parametrize(("tasks", "layers"), [(1, 1), (13, 8), (40, 32)])
def test_a_heat_map_is_saved_with_nothing_overlapping(tmp_path, tasks, layers):
    rng = np.random.default_rng(0)
    figure = heatmap(rng.normal(0, 0.1, (tasks, layers)), [f"a task of the benchmark {i}" for i in range(tasks)])
    figure.savefig(tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000
    axes = figure.axes[0]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        boxes = [label.get_window_extent(renderer) for label in labels]
        assert not any(one.overlaps(two) for one, two in pairwise(boxes))
        assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)
    bar = figure.axes[1].get_tightbbox(renderer)
    assert bar.x1 <= figure.bbox.x1
    assert bar.y1 <= figure.bbox.y1


def test_plots_touch_no_global_state():
    pyplot = sys.modules.get("matplotlib.pyplot")
    before = list(pyplot.get_fignums()) if pyplot else []
    heatmap(VECTORS)
    plot_vector([0.1, 0.2])
    stable().plot()
    VECTORS.plot_clusters()
    assert (list(pyplot.get_fignums()) if pyplot else []) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1, 0.2],), r"needs a matrix .* shape \(2,\)"),
        ((np.zeros((0, 3)),), "needs a matrix"),
        ((CHANGES, ["one"]), "1 task labels for 2 tasks"),
        ((CHANGES, None, [1, 2]), "2 layer labels for 3 layers"),
    ],
)
@pytest.mark.parametrize("draw", [heatmap, terminal_heatmap])
def test_labels_that_do_not_fit_are_refused(draw, arguments, message):
    with pytest.raises(VectorError, match=message):
        draw(*arguments)


def test_a_limit_must_be_positive():
    with pytest.raises(VectorError, match="limit=0"):
        heatmap(CHANGES, limit=0)


@pytest.mark.parametrize(
    "plot", [lambda: heatmap(CHANGES), lambda: plot_vector([0.1]), lambda: stable().plot(), VECTORS.plot_heatmap]
)
def test_without_matplotlib_the_message_says_what_to_install(monkeypatch, plot):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install layersurgery\[plots\]"):
        plot()


def test_the_tree_names_every_task_in_the_colour_of_its_cluster():
    vectors = {"a": [0.1, 0.2, 0.4], "b": [0.1, 0.3, 0.4], "c": [0.4, 0.1, 0.0], "d": [0.5, 0.1, 0.1]}
    figure = InteractionVectors(vectors).plot_clusters(2)
    axes = figure.axes[0]
    colours = {label.get_text(): label.get_color() for label in axes.get_yticklabels()}
    assert set(colours) == set(vectors)
    assert colours["a"] == colours["b"] != colours["c"] == colours["d"]
    assert len(axes.lines) == 3


def test_the_tree_draws_merges_at_their_distance():
    figure = dendrogram(np.array([[0, 1, 0.2, 2], [2, 3, 0.8, 3]]), ["x", "y", "z"])
    brackets = sorted(line.get_xdata().max() for line in figure.axes[0].lines)
    assert brackets == [0.2, 0.8]


def test_bars_show_the_vector_with_whiskers_for_single_samples():
    table = score_table()
    axes = table.plot().axes[0]
    assert np.allclose([bar.get_height() for bar in axes.patches], table.vector * 100)
    assert len(axes.collections) == 1
    assert not plot_vector([0.1, -0.2]).axes[0].collections


def marked(**fields):
    return replace(score_table(), **fields)


def test_bars_stand_beside_what_one_letter_would_score():
    table = marked(constant=0.9, constant_letter="B", answered=np.ones((4, 12)))
    axes = table.plot().axes[0]
    needed = (0.9 - table.base.mean()) * 100
    assert needed > 0
    assert [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"] == [pytest.approx(needed)]
    assert [text.get_text() for text in axes.texts] == ["always B"]
    assert axes.get_xlabel().splitlines() == [
        "layer",
        f"unmodified: {100 * table.base.mean():.1f} %",
        "no answer could be read in 0.0 %",
        "always answering B would score 90.0 %",
    ]


def test_a_baseline_that_the_model_is_above_has_no_line():
    axes = marked(constant=0.01, constant_letter="B").plot().axes[0]
    assert not axes.texts
    assert "always answering B would score 1.0 %" in axes.get_xlabel()


def test_scores_that_are_no_accuracy_are_not_called_percent():
    table = score_table()
    axes = replace(table, correct=table.correct * 7.5, answered=np.ones((4, 12))).plot().axes[0]
    assert axes.get_xlabel().splitlines() == ["layer", "no answer could be read in 0.0 %"]
    assert score_table().plot().axes[0].get_xlabel() == plot_vector([0.1]).axes[0].get_xlabel() == "layer"


def stable(chosen=(2, 30, 0), labels=(4, 5, 6), undecided=0, tables=19):
    """Of 40 resamples, in a reference where layer 5 is chosen in 0, 1, 2, ... of them and layer 6 in four."""
    references = np.array([[0, table, 4] for table in range(tables)])
    return Stability(np.array(chosen), 40, references, undecided, labels)


def bars_of(axes, width):
    return [bar for bar in axes.patches if bar.get_width() == pytest.approx(width)]


def test_every_bar_of_the_stability_stands_before_what_it_is_by_chance():
    axes = stable().plot(title="a task").axes[0]
    assert [bar.get_height() for bar in bars_of(axes, 0.5)] == [5, 75, 0, 20]
    by_chance = bars_of(axes, 0.9)
    assert [bar.get_y() for bar in by_chance] == pytest.approx([0, 2.25, 10, 47.25])
    assert [bar.get_y() + bar.get_height() for bar in by_chance] == pytest.approx([0, 42.75, 10, 87.75])
    means = [segment[0][1] for segment in axes.collections[0].get_segments()]
    assert means == pytest.approx([0, 22.5, 10, 67.5])
    assert ticks(axes.get_xticklabels()) == ["4", "5", "6", "keep"]
    assert axes.get_xlabel().splitlines() == ["layer", "layer 5: 75 %, p = 0.05"]
    assert axes.get_title(loc="left") == "a task"


@pytest.mark.parametrize(
    ("tables", "height", "text"),
    [
        (19, 45, "above it p ≤ 0.05"),
        (39, 92.5, "above it p ≤ 0.05"),
        (18, 42.5, "the most that a site has in 18 such tables"),
    ],
)
def test_the_line_is_what_a_site_must_pass_to_stand_out(tables, height, text):
    found = stable(tables=tables)
    figure = found.plot()
    line = figure.axes[0].collections[1].get_segments()[0]
    assert line[:, 1] == pytest.approx([height, height])
    assert line[1, 0] < 3  # not over the bar of the kept model
    assert [entry.get_text() for entry in figure.legends[0].get_texts()][-1] == text
    above, at = (replace(found, chosen=np.array([count, 0, 0])) for count in (height * 0.4 + 1, height * 0.4))
    assert (above.p <= 0.05) == (tables > 18)
    assert at.p > 0.05


def test_a_model_that_is_always_kept_and_samples_that_are_too_few_are_told_below():
    axes = plot_stability(stable(chosen=(0, 0, 0), labels=None, undecided=3)).axes[0]
    said = ["site", "always kept", "too few samples to decide in 3, kept there"]
    assert axes.get_xlabel().splitlines() == said
    assert ticks(axes.get_xticklabels()) == ["0", "1", "2", "keep"]


@pytest.mark.parametrize(("sites", "labels"), [(3, None), (8, None), (8, "long"), (64, None)])
def test_nothing_of_the_stability_lies_outside_of_its_picture_or_on_another_label(sites, labels):
    names = tuple(f"zero model.language_model.layers.{site}.self_attn" for site in range(sites))
    chosen = np.eye(sites, dtype=int)[-1] * 40
    found = Stability(chosen, 40, chosen[None], 0, names if labels else tuple(range(sites)))
    figure = found.plot(title="a task")
    FigureCanvasAgg(figure).draw()
    axes, (legend,) = figure.axes[0], figure.legends
    beside = [*axes.get_xticklabels(), axes.xaxis.label, axes.yaxis.label, *legend.get_texts()]
    boxes = [text.get_window_extent() for text in beside]
    width, height = figure.canvas.get_width_height()
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    below = boxes[: -1 - len(legend.get_texts())]
    assert not any(one.overlaps(other) for at, one in enumerate(below) for other in below[:at])
    assert legend.get_window_extent().y1 <= axes.xaxis.label.get_window_extent().y0
    if labels:
        assert ticks(axes.get_xticklabels())[2] == "zero mode…layers.2.self_attn"


def test_text_shows_signed_points_under_layer_numbers():
    text = terminal_heatmap(CHANGES, ["sum", "maps"], [8, 9, 10], color=False, width=80)
    assert text.splitlines() == ["        8   9  10", "sum   +12 -40   0", "maps   +2  -3   0"]


def test_text_of_many_layers_stays_within_the_width():
    names = ["sum", "a name that is far too long to show in full"]
    text = terminal_heatmap(np.full((2, 32), -0.5), names, color=False, width=60)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(text.split()).count("-50") == 64
    assert any("…" in line for line in lines)
    heads = [int(word) for line in lines for word in line.split() if word.isdigit()]
    assert heads == list(range(32))


def test_text_shows_a_cell_that_is_not_known_as_a_dot():
    assert terminal_heatmap([[np.nan, 1.0]], color=False, width=80).splitlines()[1].split() == ["0", ".", "+100"]


def test_colours_stand_behind_the_numbers_only(monkeypatch):
    monkeypatch.setenv("COLORTERM", "truecolor")
    text = terminal_heatmap([[0.5, -0.5, 0.0]], ["sum"], color=True, width=80)
    head, row = text.splitlines()
    assert "\x1b" not in head
    assert row.startswith("sum ")
    assert "\x1b[48;2;178;24;43;38;5;231m +50\x1b[0m" in row
    assert "\x1b[48;2;33;102;172;38;5;231m -50\x1b[0m" in row
    assert row.endswith("\x1b[48;2;247;247;247;38;5;16m   0\x1b[0m")


def test_a_plain_terminal_gets_256_colours(monkeypatch):
    monkeypatch.delenv("COLORTERM", raising=False)
    text = terminal_heatmap([[0.5, -0.5, 0.0]], color=True, width=80)
    for code in ("48;5;124;", "48;5;25;", "48;5;231;"):
        assert code in text


@pytest.mark.parametrize(
    ("terminal", "environment", "coloured"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_auto_colours_only_a_terminal_that_wants_them(monkeypatch, terminal, environment, coloured):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert ("\x1b" in terminal_heatmap(CHANGES, width=80)) == coloured


def test_color_is_true_false_or_auto():
    with pytest.raises(VectorError, match="color='always'"):
        terminal_heatmap(CHANGES, color="always")
