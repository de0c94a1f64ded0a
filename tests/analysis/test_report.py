"""The report: one page that parses, fetches nothing, escapes every name and holds the figures."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch

from qzoo.analysis import analyze
from qzoo.analysis.report.charts import profile
from qzoo.analysis.report.svg import Canvas, ticks
from qzoo.native.model import from_native
from qzoo.quantize import ptq
from qzoo.safe_text import printable
from tests.helpers.trained import digits, digits_model

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Checks nesting, and gathers what a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def diagnosis():
    model = digits_model("shufflenet_v2_x0_5")
    options = {"backend": "onednn", "recipe": "fast", "progress": False}
    artifact = from_native(ptq(model, digits("train", model, 64), **options))
    name = "stage3.1.branch2.0"
    bad = dataclasses.replace(artifact.layers[name], scale=artifact.layers[name].scale / 20)
    faulty = dataclasses.replace(artifact, layers={**artifact.layers, name: bad})
    test = digits("test", model, 16)
    return analyze(model, faulty, test, images=16, sensitivity_images=4, progress=False)


@pytest.fixture(scope="module")
def html(diagnosis):
    return diagnosis.to_html()


def test_it_parses_and_has_what_a_page_needs(html):
    page = Page(html)
    tags = [tag for tag, _ in page.tags]
    assert html.startswith("<!DOCTYPE html>")
    assert tags.count("h1") == 1 and tags.count("title") >= 1 and "main" in tags
    assert ("html", {"lang": "en"}) in page.tags
    svgs = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(svgs) >= 5
    assert all(s["role"] == "img" and s["aria-label"] for s in svgs)
    assert all(a.get("scope") == "col" for tag, a in page.tags if tag == "th")


def test_nothing_is_fetched_and_nothing_runs(html):
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "img", "object", "use"}
    for _, attributes in page.tags:
        assert not {"src", "href", "xlink:href"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"https?://|url\(|@import|//[a-z]", html)


def test_it_holds_the_figures(diagnosis, html):
    text = " ".join("".join(Page(html).words).split()).replace("\xa0", " ")
    accuracy = diagnosis.accuracy
    for figure in (accuracy.float_top1, accuracy.int8_top1, accuracy.agreement):
        assert f"{figure:.2f} %" in text
    assert f"{diagnosis.int8_bytes / 2**20:.2f} MiB" in text
    for layer in diagnosis.comparison.layers:
        assert layer.name in text
        assert f"{layer.alone.cosine:.5f}" in text
    for finding in diagnosis.findings:
        assert finding.title in text
        for advice in finding.advice:
            assert advice.python in text and advice.command in text
    for suspect in diagnosis.ranking[:15]:
        assert f"same answer {suspect.damage.agreement:.1f} %" in text
    for heading in ("What to try next", "Where it is lost", "Which layers do harm",
                    "What the words mean", "How this was measured"):  # fmt: skip
        assert heading in text


def test_names_are_escaped(diagnosis):
    evil = '<script>alert("x")</script>&"\x1b[2J\x9b\u202e\u2028'
    layers = list(diagnosis.comparison.layers)
    first = diagnosis.ranking[0]
    index = next(i for i, la in enumerate(layers) if la.name == first.name)
    layers[index] = dataclasses.replace(layers[index], name=evil)
    sensitivity = dataclasses.replace(
        diagnosis.sensitivity,
        layers=tuple(
            dataclasses.replace(la, name=evil) if la.name == first.name else la
            for la in diagnosis.sensitivity.layers
        ),
    )
    changed = dataclasses.replace(
        diagnosis,
        architecture=evil,
        backend=evil,
        recipe={"ptq_recipe": evil, "calibration_images": evil},
        measured={**diagnosis.measured, "versions": {evil: evil}},
        comparison=dataclasses.replace(diagnosis.comparison, layers=tuple(layers)),
        sensitivity=sensitivity,
        ranking=(dataclasses.replace(first, name=evil), *diagnosis.ranking[1:]),
        findings=tuple(dataclasses.replace(f, title=evil, text=evil) for f in diagnosis.findings),
    )
    html = changed.to_html()
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert printable(evil) in "".join(page.words), "shown as it is"
    assert all(line.isprintable() for line in html.replace("\u00a0", " ").split("\n"))


def test_without_labels_and_with_a_healthy_model():
    model = digits_model("shufflenet_v2_x0_5")
    images = torch.stack([image for image, _ in digits("test", model, 8)])
    int8 = ptq(model, images, backend="onednn", recipe="fast", progress=False)
    found = analyze(model, int8, images, sensitivity_images=2, progress=False)
    assert found.accuracy.float_top1 is None and found.accuracy.agreement >= 75
    assert not any(f.severity == "fault" for f in found.findings)
    Page(found.to_html())
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_layer_without_any_error_can_be_drawn(diagnosis):
    layers = diagnosis.comparison.layers
    exact = dataclasses.replace(layers[0].alone, sqnr_db=float("inf"))
    first = dataclasses.replace(layers[0], alone=exact, accumulated=exact)
    comparison = dataclasses.replace(diagnosis.comparison, layers=(first, *layers[1:]))
    assert "inf" not in profile(comparison, []).replace("infinite", "")


def test_ticks_are_round_and_within():
    for low, high in ((0, 1), (-3, 23), (0, 255), (-0.013, 0.21), (0, 1e-7), (-5e3, 7e4)):
        found = list(ticks(low, high))
        assert 2 <= len(found) <= 8 and low <= found[0] and found[-1] <= high * (1 + 1e-9)
        steps = {round(b - a, 12) for a, b in itertools.pairwise(found)}
        assert len(steps) == 1
    assert list(ticks(2.0, 2.0)) == [2.0]


def test_a_drawing_is_escaped():
    canvas = Canvas(10, 10, 'a "title" <here>')
    canvas.rect(0, 0, -1, 5, "one", "<tip>")
    canvas.text(1, 2, "<text> & more")
    svg = canvas.to_svg()
    assert "<tip>" not in svg and "&lt;tip&gt;" in svg and "&lt;text&gt; &amp; more" in svg
    assert 'width="0"' in svg, "nothing is drawn backwards"


BROWSER = next(
    filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None
)


@pytest.mark.skipif(BROWSER is None, reason="needs a headless Chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_a_real_browser_shows_it(html, tmp_path, dark):
    """The page is as wide as the window, every chart has a size, and no network is asked."""
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    probe = (
        "<script>addEventListener('load', () => { const boxes = [...document.querySelectorAll("
        "'svg')].map(s => s.getBoundingClientRect()); document.title = JSON.stringify({"
        "wide: document.documentElement.scrollWidth, window: innerWidth,"
        "flat: boxes.filter(b => b.height < 40 || b.width < 100).length, charts: boxes.length,"
        "text: getComputedStyle(document.body).color,"
        "page: getComputedStyle(document.body).backgroundColor,"
        "fetched: performance.getEntriesByType('resource').length}); });</script></body>"
    )
    (tmp_path / "probed.html").write_text(html.replace("</body>", probe), encoding="utf-8")
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,900",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
        (tmp_path / "probed.html").as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search(r"<title>(\{.*?\})</title>", shown)
    assert title, shown[:500]
    found = json.loads(title[1])
    assert found["wide"] <= found["window"], "nothing makes the page scroll sideways"
    assert found["charts"] >= 5 and found["flat"] == 0 and found["fetched"] == 0
    light = [sum(map(int, re.findall(r"\d+", found[k])[:3])) for k in ("text", "page")]
    assert (light[0] > light[1]) == dark, "light on dark, or dark on light"
    picture = tmp_path / "page.png"
    command[-1] = (tmp_path / "page.html").as_uri()
    command[command.index("--dump-dom")] = f"--screenshot={picture}"
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert picture.stat().st_size > 20_000
