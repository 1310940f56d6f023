"""Data sets by name, and mixtures of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from fadepth_core.data import DataError
from fadepth_core.data.registry import TRAINING_SETS, InMemory, Mixture, WithPlaceholders, build_dataset, build_test_set


class Numbers:
    """A data set of `length` samples (name, index); counts how often each was loaded."""

    def __init__(self, name, length):
        self.name, self.length, self.loaded = name, length, Counter()

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if not 0 <= index < self.length:
            raise IndexError(index)
        self.loaded[index] += 1
        return self.name, index


def test_a_data_set_is_built_by_name():
    dataset = build_dataset("synthetic", (64, 96), preset="indoor", length=7)
    assert len(dataset) == 7
    assert dataset[0].frames.shape == (3, 3, 64, 96)
    assert len(build_test_set("synthetic", size=(64, 96), length=3)) == 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("imagenet", {}, f"no data set 'imagenet'; there are {', '.join(TRAINING_SETS)}"),
        ("synthetic", {"sead": 3}, "data set 'synthetic': .*'sead'; it takes preset, size, length, seed"),
        ("synthetic", {"length": 0}, "data set 'synthetic': length must be at least 1"),
        ("kitti", {}, "data set 'kitti': missing a required argument: 'root'"),
    ],
)
def test_errors_explain_unknown_names_and_options(name, options, message):
    with pytest.raises(DataError, match=message):
        build_dataset(name, (64, 96), **options)


def test_a_mixture_contains_every_sample_and_keeps_the_shares():
    small, large = Numbers("small", 3), Numbers("large", 10)
    mixture = Mixture([small, large], [3, 1])
    seen = Counter(mixture[i] for i in range(len(mixture)))
    assert len(mixture) == 40
    assert set(seen) == {("small", i) for i in range(3)} | {("large", i) for i in range(10)}
    assert sum(n for (name, _), n in seen.items() if name == "small") == 30
    assert set(seen.values()) == {1, 10}
    with pytest.raises(IndexError):
        mixture[40]


@pytest.mark.parametrize("shares", [(1, 1), (0.3, 0.7), (5, 2), (1, 30)])
def test_shares_are_exact_to_one_sample(shares):
    mixture = Mixture([Numbers("a", 7), Numbers("b", 11)], shares)
    seen = Counter(mixture[i] for i in range(len(mixture)))
    assert len(seen) == 18, "every sample is in the mixture"
    first = sum(n for (name, _), n in seen.items() if name == "a")
    assert abs(first - len(mixture) * shares[0] / sum(shares)) <= 1


@pytest.mark.parametrize("shares", [[1], [1, 0], [1, -2]])
def test_invalid_shares_are_refused(shares):
    with pytest.raises(ValueError, match="one positive share for each"):
        Mixture([Numbers("a", 1), Numbers("b", 1)], shares)


def test_samples_in_memory_are_loaded_once():
    source = Numbers("a", 4)
    kept = InMemory(source)
    assert [kept[i] for i in (2, 1, 2, 2)] == [("a", 2), ("a", 1), ("a", 2), ("a", 2)]
    assert source.loaded == {2: 1, 1: 1}
    assert len(kept) == 4


def test_missing_fields_get_placeholders():
    sample = build_dataset("synthetic", (64, 96), length=1)[0]
    assert WithPlaceholders([sample])[0].depth is sample.depth
    filled = WithPlaceholders([replace(sample, depth=None, speed=None)])[0]
    assert torch.equal(filled.depth, torch.zeros(64, 96))
    assert filled.speed.isnan()
