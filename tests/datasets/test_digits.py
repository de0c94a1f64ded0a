"""The digits: what an item is, that the split is fixed and fair, and what its absence says."""

from __future__ import annotations

import hashlib
import random
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from qzoo.datasets import Digits
from qzoo.datasets import digits as module
from qzoo.datasets.digits import digits_transforms
from qzoo.errors import ArgumentError, MissingDependencyError


def test_items_are_rgb_pictures_of_the_scans() -> None:
    digits = Digits("test")
    source = load_digits()
    for item in (0, 17, len(digits) - 1):
        picture, label = digits[item]
        assert (picture.mode, picture.size) == ("RGB", (8, 8))
        assert type(label) is int
        grey = np.asarray(picture)
        scan = np.rint(source.images[digits.indices[item]] * 255 / 16)
        assert all(np.array_equal(grey[..., c], scan) for c in range(3))
        assert label == source.target[digits.indices[item]] == digits.targets[item]
    assert list(digits.classes) == [str(d) for d in range(10)]
    assert (digits.images.min(), digits.images.max()) == (0, 255)


def test_splits_share_no_image_and_are_stratified() -> None:
    train, test = Digits("train"), Digits("test")
    assert sorted(train.indices + test.indices) == list(range(1797))
    everything, held_out = Counter(train.targets + test.targets), Counter(test.targets)
    assert all(held_out[label] == everything[label] // 4 for label in range(10))


def test_split_never_changes() -> None:
    # Published figures were measured on exactly these images.
    listed = ",".join(map(str, Digits("test").indices)).encode()
    assert hashlib.sha256(listed).hexdigest() == SPLIT_SHA256


SPLIT_SHA256 = "1903ec5eef76c142f3bc222dd823ff6f2574773d0ddfef52ad76f41226b9c54f"


def test_random_states_are_left_alone() -> None:
    module._scans.cache_clear()
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    Digits("train")[3]
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


def test_preset_gives_model_inputs() -> None:
    image, _ = Digits("test", digits_transforms(64))[0]
    assert image.shape == (3, 64, 64)
    assert image.dtype == torch.float32
    assert -1 <= float(image.min()) < -0.9
    assert 0.9 < float(image.max()) <= 1
    assert digits_transforms(32, 40).to_dict()["resize_size"] == 40


def test_unknown_split() -> None:
    with pytest.raises(ArgumentError, match=r"'testing'.*train, test.*Did you mean 'test'"):
        Digits("testing")


def test_absent_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    module._scans.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "qzoo\[digits\]"'):
        Digits()
