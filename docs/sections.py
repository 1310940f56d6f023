"""Replaces the generated part of a page, for the scripts that write tables into the documentation."""

from __future__ import annotations

from pathlib import Path


def replace_section(page: Path, begin: str, end: str, content: str) -> None:
    """Replace what stands between two markers in `page`, which is written only if it changes.

    Raises:
        SystemExit: the page lacks a marker.
    """
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page}: '{begin}' and '{end}' must enclose the generated part")
    new = f"{before}{begin}\n\n{content.strip()}\n\n{end}{after}"
    if new != text:
        page.write_text(new, encoding="utf-8")
        print(f"wrote {page}")
