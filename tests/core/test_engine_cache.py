"""The cache of compiled engines: entries are found again and not confused, and damage is not fatal."""

import errno
import logging

import pytest

from fadepth_core.runtime import engine_cache
from fadepth_core.runtime.engine_cache import EngineCache

LOG = logging.getLogger("fadepth")
IDENTITY = {"weights": "abc", "gpu": "NVIDIA GeForce RTX 4090 sm89", "precision": "fp16"}


@pytest.fixture
def cache(tmp_path):
    cache = EngineCache(tmp_path / "engines")
    cache.put(IDENTITY, b"plan" * 1000, LOG)
    return cache


def test_an_engine_is_found_again(cache):
    assert cache.get(IDENTITY, LOG) == b"plan" * 1000
    assert cache.get(dict(reversed(IDENTITY.items())), LOG) is not None


@pytest.mark.parametrize("change", [{"gpu": "NVIDIA H100 sm90"}, {"weights": "other"}, {"driver": "580"}])
def test_another_key_finds_nothing(cache, change, caplog):
    assert cache.get({**IDENTITY, **change}, LOG) is None
    assert not caplog.records


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "empty"])
def test_a_damaged_engine_is_reported_and_can_be_replaced(cache, damage, caplog):
    path = cache.path(IDENTITY)
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[-1] ^= 1
    elif damage == "empty":
        content = b""
    else:  # the file of another engine under this name
        other = {**IDENTITY, "gpu": "another"}
        cache.put(other, b"other plan", LOG)
        content = cache.path(other).read_bytes()
    path.write_bytes(content)
    assert cache.get(IDENTITY, LOG) is None
    assert f"{path}: a damaged engine, it will be built again" in caplog.text
    cache.put(IDENTITY, b"new", LOG)
    assert cache.get(IDENTITY, LOG) == b"new"


def test_a_full_disk_gives_a_warning_and_keeps_the_old_file(cache, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(engine_cache, "save_file", full)
    cache.put(IDENTITY, b"new", LOG)
    assert "No space left on device" in caplog.text
    assert "will be built again at the next start" in caplog.text
    assert cache.get(IDENTITY, LOG) == b"plan" * 1000
    assert [path.name for path in cache.folder.iterdir()] == [cache.path(IDENTITY).name], "nothing half-written"
