"""What the tests of the reference scripts share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.pictures import write_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 17 pictures to train on and 3 to measure on; not to be changed."""
    root = tmp_path_factory.mktemp("pictures")
    return write_pictures(root, 17, 3, ("bright", "dark", "grey"))


@pytest.fixture
def own_pictures(tmp_path: Path) -> Path:
    """Two classes of 8 pictures to train on and 2 to measure on, for a test to spoil."""
    return write_pictures(tmp_path / "photos", 8, 2, ("bright", "dark"))
