"""Numbers on the command line: what cannot be meant is refused at the option, in one sentence."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qzoo._core.option_types import Number, Whole
from qzoo.cli import main
from tests.helpers.commands import invoke

OPTIONS = [
    (name, option)
    for name, command in main.commands.items()
    for option in command.params
    if isinstance(option.type, (click.types.IntParamType, click.types.FloatParamType))
]


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=lambda v: getattr(v, "name", v))
def test_every_number_is_bounded(command: str, option: click.Parameter) -> None:
    assert isinstance(option.type, (Whole, Number))
    texts = ["nan", "inf", "-inf", "1e999", "9" * 5000, "x", ""]
    if isinstance(option.type, Whole):
        texts += [str(10**30), "1.5", "-1"]
    for text in texts:
        result = invoke(command, option.opts[0], text)
        assert result.exit_code == 2, (text, result.output)
        assert "Invalid value for" in result.stderr and "Traceback" not in result.stderr


def test_there_are_numbers() -> None:
    assert len(OPTIONS) >= 20


@pytest.mark.parametrize("option", ["--threads", "--batch"])
@pytest.mark.parametrize("text", ["0", "1,x", ",", str(10**30), "9" * 5000, "1,nan"])
def test_lists_of_numbers(option: str, text: str) -> None:
    result = invoke("benchmark", "resnet18", option, text)
    assert result.exit_code == 2 and "Invalid value for" in result.stderr


NUMBERS = st.integers().map(str) | st.floats().map(str) | st.text(max_size=8)


@given(NUMBERS, st.integers(0, 9), st.integers(10, 10**6))
def test_a_number_is_taken_as_python_reads_it_or_refused(text: str, low: int, high: int) -> None:
    for kind, read in ((Whole(low, high), int), (Number(low, high), float)):
        try:
            number = kind.convert(text, None, None)
        except click.BadParameter:
            try:
                assert not low <= read(text) <= high
            except (ValueError, OverflowError):
                continue  # no number at all
        else:
            assert type(number) is read and number == read(text) and low <= number <= high


def test_what_is_meant_is_taken() -> None:
    assert Whole(1).convert("2147483647", None, None) == 2**31 - 1
    assert Whole(0, 2**63 - 1).convert(str(2**63 - 1), None, None) == 2**63 - 1
    assert Number(0, 100).convert("0.3", None, None) == 0.3
    with pytest.raises(click.BadParameter, match="far too large"):
        Whole(1).convert(str(2**31), None, None)
