"""Text that came from outside is shown as it is where it can be, and escaped where it must be."""

from __future__ import annotations

import io
import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qzoo.errors import ArtifactError, DownloadError, MissingDependencyError
from qzoo.safe_text import markdown, markdown_code, printable, printable_json, terminal_text

#: What a terminal obeys or hides: C0, DEL, C1, marks of direction and invisible ones, separators.
UNSAFE = [
    *map(chr, (*range(32), *range(127, 160))),
    *"\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2028\u2029\u2060",
    *"\u2066\u2067\u2068\u2069\ufeff\ufff9\U000e0041\ud800\udcff",
]


@pytest.mark.parametrize("character", UNSAFE, ids=ascii)
def test_every_unsafe_character_is_escaped(character: str) -> None:
    for text in (printable(f"a{character}b"), str(ArtifactError(f"a{character}b"))):
        assert text.startswith("a\\") and text.endswith("b") and text.isascii()
    value = {f"a{character}b": [f"{character}"]}
    shown = printable_json(json.dumps(value, ensure_ascii=False))
    assert shown.isascii() and json.loads(shown) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "resnet50",
        "Müller.png",
        "猫",
        "кошка",
        "קטה",
        "هذه",
        "می‌خواهم",
        "👩‍💻",
        "a\\b",
        "a\u00a0b",
    ],
)
def test_names_in_every_script_stay_as_they_are(text: str) -> None:
    assert printable(text) == text
    assert printable_json(json.dumps(text, ensure_ascii=False)) == json.dumps(
        text, ensure_ascii=False
    )


@given(st.text())
def test_any_text_is_one_harmless_line_and_stays_so(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1 and printable(shown) == shown
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cs", "Zl", "Zp"}
    if text.isascii() and text.isprintable():
        assert shown == text


def test_nothing_that_changes_a_line_is_left() -> None:
    everything = "".join(map(chr, range(0x110000)))
    left = set(map(unicodedata.category, printable(everything))) - {"Cn", "Co"}
    assert not left & {"Cc", "Cs", "Zl", "Zp"}
    assert len(printable(everything).splitlines()) == 1


@pytest.mark.parametrize("kind", [ArtifactError, DownloadError, MissingDependencyError])
def test_errors_are_one_line(kind: type[Exception]) -> None:
    assert str(kind("no\nsuch\x1b[31m file")) == r"no\nsuch\x1b[31m file"
    assert str(kind()) == ""


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "Müller 猫"), ("cp1252", r"Müller \u732b"), ("ascii", r"M\xfcller \u732b")],
)
def test_what_a_terminal_cannot_write_is_escaped(encoding: str, shown: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    assert terminal_text("Müller 猫", stream) == shown
    stream.write(shown)
    assert terminal_text("a", sys.stdout) == "a"


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "![x](http://evil/pixel.png)",
        "[click](javascript:alert)",
        "**bold** _it_ `code`",
        "a | b\n---\n# heading",
        "<https://evil.test>",
        "https://evil.test www.evil.test",
        "&lt;b&gt; &#91;",
        "a\\[b](c)",
        "\u202eevil\x1b[2J",
    ],
)
def test_markdown_shows_text_literally(text: str) -> None:
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark").enable("table")
    plain = " ".join(printable(text).split())
    for written in (markdown(text), markdown_code(text)):
        (paragraph,) = (t for t in reader.parse(f"x {written} y") if t.type == "inline")
        kinds = {child.type for child in paragraph.children or ()}
        assert kinds <= {"text", "text_special", "code_inline"}
        assert "".join(c.content for c in paragraph.children or ()) == f"x {plain} y"
