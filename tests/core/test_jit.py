"""Where compiled code is kept."""

from __future__ import annotations

import os
import stat
import tempfile

import pytest

numba = pytest.importorskip("numba")

from fadepth_core.common.jit import jit  # noqa: E402


def one_more(number):
    return number + 1


@pytest.fixture
def read_only(monkeypatch, tmp_path):
    """Nothing can be written but below the test's folder: a read-only installation in an account without a home."""
    temporary_file = tempfile.TemporaryFile

    def refused(*arguments, dir=None, **options):
        if not str(dir).startswith(str(tmp_path)):
            raise PermissionError(13, "Permission denied", str(dir))
        return temporary_file(*arguments, dir=dir, **options)

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    return tmp_path


def test_a_read_only_installation_caches_in_a_folder_that_only_this_user_can_write(read_only):
    assert jit(one_more)(1) == 2
    (folder,) = read_only.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.environ["NUMBA_CACHE_DIR"] == str(folder)
    assert list(folder.rglob("*.nbi"))


def test_a_cache_folder_that_others_can_write_is_not_used(read_only):
    folder = read_only / f"fadepth-numba-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    assert jit(one_more)(1) == 2
    assert not list(folder.rglob("*"))


def test_without_any_folder_code_is_compiled_without_a_cache(read_only, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(read_only / "missing"))
    assert jit(one_more)(1) == 2
