"""The version of the installed package, or of the clone that the code runs from.

`package.xml` at the root of the repository holds the version, because ROS tools read it there. `setup.py` reads it too.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from xml.etree import ElementTree

PACKAGE_XML = Path(__file__).resolve().parents[2] / "package.xml"


def version() -> str:
    """The version, for example `0.1.0`.

    The version of a clone is preferred, because the installed package may be an older one.

    Raises:
        importlib.metadata.PackageNotFoundError: the code runs neither from a clone nor from an installation.
    """
    if PACKAGE_XML.is_file():
        return ElementTree.parse(PACKAGE_XML).findtext("version", "")
    return importlib.metadata.version("fadepth_ros")
