"""The report: one file, nothing fetched, every text escaped, false positives first, honest about missing data."""

from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.reports.charts import IntervalRow, Series, interval_chart, line_chart
from experiments.reports.html import write_report
from worldgym.errors import CheckpointError


class Balance(HTMLParser):
    """Fails on a tag that is closed without having been opened, and remembers what stays open."""

    VOID = {"meta", "img", "br", "line", "circle", "polyline"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def test_the_page_is_whole_and_fetches_nothing(demo):
    out, _ = demo
    page = (out / "report.html").read_text()
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert parser.sources and all(source.startswith("data:") for source in parser.sources)
    assert "http://" not in page and "https://" not in page


def test_the_page_names_judge_versions_budget_and_how_to_go_on(demo):
    out, results = demo
    page = (out / "report.html").read_text()
    for text in (
        results["judge"],
        results["versions"]["torch"],
        "imagined steps used",
        "worldgym eval --policy",
    ):
        assert text in page


def test_false_positives_come_first(demo):
    page = (demo[0] / "report.html").read_text()
    assert page.index("false positives") < page.index("true positives") < page.index("false negatives")


def test_text_from_outside_is_escaped(demo, tmp_path):
    out = shutil.copytree(demo[0], tmp_path / "copy")
    results = json.loads((out / "results.json").read_text())
    results["judge"] = "<script>alert(1)</script>"
    results["arms"][0]["name"] = "<b>x"
    (out / "results.json").write_text(json.dumps(results))
    page = write_report(out).read_text()
    assert "<script>" not in page and "<b>x" not in page


def test_a_page_can_be_made_without_history_and_videos(demo, tmp_path):
    shutil.copy(demo[0] / "results.json", tmp_path)
    page = write_report(tmp_path).read_text()
    assert "Learning curves" not in page and "Results in Real" in page


@pytest.mark.parametrize("name", ["results.json", "history.json", "clips.json"])
@pytest.mark.parametrize("text", ["", "{", "\x00"])
def test_a_damaged_file_of_a_run_is_named_with_what_to_type(demo, tmp_path, name, text):
    folder = shutil.copytree(demo[0], tmp_path / "run")
    before = (folder / "report.html").read_bytes()
    (folder / name).write_text(text)
    with pytest.raises(CheckpointError, match=f"{name} can't be read.*worldgym demo --out"):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == before


def test_a_folder_without_results_says_what_to_type(tmp_path):
    with pytest.raises(FileNotFoundError, match="worldgym demo"):
        write_report(tmp_path)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1e4, 1e4) | st.just(math.nan), min_size=1, max_size=30), st.booleans())
def test_any_curve_draws_inside_its_frame(values, smooth):
    html = line_chart([Series("a <b>", range(len(values)), values, smooth)], x_label="steps & more")
    if all(math.isnan(v) for v in values):
        assert "No points" in html
        return
    svg = ElementTree.fromstring(html[: html.index("</svg>") + 6])
    for line in svg.iter("polyline"):
        for x, y in (map(float, point.split(",")) for point in line.get("points").split()):
            assert -1 <= x <= 621 and -1 <= y <= 251


def test_differences_show_the_zero_line():
    html = interval_chart([IntervalRow("a - b", 0.1, -0.02, 0.2)], zero=True)
    assert 'class="zero"' in html and "+10 pts" in html
    assert re.search("No rows", interval_chart([]))
