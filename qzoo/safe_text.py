"""Text from files, servers and users, made safe to show on a terminal and in Markdown.

Class names, file names and the headers of servers are anybody's. On a terminal, control characters
move the cursor, change the colours or hide what was said; the marks that turn the direction of
writing make a name read as another one. They are shown as Python writes them: `\\x1b`, `\\u202e`.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable
from typing import TextIO

# Control characters, invisible marks (among them those of direction), lone surrogates, and the two
# separators that end a line. Not the two marks that join letters in Persian, in Hindi and in emoji.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"
#: What has a meaning in Markdown; `&`, `<` and `>` become entities before.
_MARKDOWN = re.compile(r"[\\`*_\[\]{}#|~$!]")


def printable(text: object) -> str:
    """Returns the text in one line, every character escaped that would not show as itself."""
    return _escaped(str(text), _as_python)


def printable_json(text: str) -> str:
    """Returns JSON with the same characters escaped as JSON does, so that its value stays."""
    lines = text.split("\n")  # outside of strings, where JSON has line breaks of its own
    return "\n".join(_escaped(line, _as_json) for line in lines)


def terminal_text(text: object, stream: TextIO) -> str:
    """Returns the text in one line as `stream` can show it: safe, and in its encoding."""
    return encodable(printable(text), stream.encoding)


def encodable(text: str, encoding: str | None, *, json: bool = False) -> str:
    """Returns the text with everything escaped that an encoding (None: UTF-8) lacks.

    Args:
        text: What is to be written.
        encoding: Of the stream, such as "cp1252".
        json: Escape as JSON does, not as Python does.
    """
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        escape = _as_json if json else _as_python
        return "".join(c if _has(encoding, c) else escape(c) for c in text)
    except LookupError:  # an encoding that Python does not know
        return encodable(text, "ascii", json=json)
    return text


def markdown(text: object) -> str:
    """Returns Markdown that shows the text literally, in one line: no markup, link or HTML."""
    plain = html.escape(" ".join(printable(text).split()), quote=False)
    plain = _MARKDOWN.sub(r"\\\g<0>", plain)
    # Addresses become links by themselves.
    return plain.replace("://", "&#58;//").replace("www.", "www&#46;")


def markdown_code(text: object) -> str:
    """Returns the text as Markdown's code in a line, also where it holds backticks."""
    plain = " ".join(printable(text).split())
    longest = max((len(run) for run in re.findall("`+", plain)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{plain}{space}{fence}"


def _escaped(text: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():  # nearly always, and quickly seen
        return text
    return "".join(escape(c) if _is_unsafe(c) else c for c in text)


def _is_unsafe(character: str) -> bool:
    return unicodedata.category(character) in _UNSAFE and character not in _JOINERS


def _as_python(character: str) -> str:
    return ascii(character)[1:-1]


def _as_json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _has(encoding: str | None, character: str) -> bool:
    try:
        character.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
