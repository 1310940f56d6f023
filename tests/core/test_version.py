"""One version: ROS tools read it in package.xml, from which everything else follows."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import fadepth_core
from fadepth_core import cli
from fadepth_core.common import version

ROOT = Path(__file__).resolve().parents[2]
DECLARED = ElementTree.parse(ROOT / "package.xml").findtext("version")


def test_the_command_prints_the_version_of_package_xml(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"fadepth {DECLARED}\n"
    assert fadepth_core.__version__ == DECLARED


def test_the_citation_names_the_version_of_package_xml():
    found = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found == [DECLARED]


def test_an_installed_package_has_the_version_of_its_metadata(monkeypatch, tmp_path):
    monkeypatch.setattr(version, "PACKAGE_XML", tmp_path / "package.xml")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"fadepth_ros": "7.8.9"}[name])
    assert version.version() == "7.8.9"


def test_importing_the_package_imports_no_heavy_library():
    heavy = "{'numpy', 'torch', 'cv2', 'openvino'}"
    program = f"import sys, fadepth_core; fadepth_core.__version__; print(sorted({heavy} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_the_inference_api_is_imported_from_the_package():
    from fadepth_core.runtime import engine

    assert fadepth_core.DepthEngine is engine.DepthEngine
    assert fadepth_core.FrameRequest is engine.FrameRequest
