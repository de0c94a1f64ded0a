"""Damaged pictures of every format: each is read, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from qzoo.pictures.images import load_image
from tests.helpers.picture_fuzz import foreign_errors, mutants, seeds


def test_what_the_mutants_are_made_of_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "whole"
    for content in seeds().values():
        path.write_bytes(content)
        assert load_image(path).mode == "RGB"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore:Image size:UserWarning")
def test_no_damaged_picture_raises_anything_but_the_error_for_pictures(tmp_path: Path) -> None:
    path, found = tmp_path / "mutant", []
    for name, content in mutants(600, seed=1):
        path.write_bytes(content)
        found += foreign_errors(name, path)
    assert not found
