#!/usr/bin/env python3
"""Draw images/packages.svg, the packages with their sizes and imports, and write the table in architecture.md.

    python docs/packages.py

`make docs` runs this first. Packages and imports are read from the source, which is parsed, not imported.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

from sections import replace_section

DOCS = Path(__file__).resolve().parent
PAGE, PICTURE = DOCS / "architecture.md", DOCS / "images" / "packages.svg"
BEGIN, END = "<!-- table: written by docs/packages.py -->", "<!-- end of table -->"

#: Lines of each package before the redesign (commit b559a2d). The renderer was in `data`, the commands in training/run.py.
BEFORE = {
    "common": 0, "messages": 0, "geometry": 277, "models": 2227, "losses": 1310, "rendering": 0, "synthetic": 0, "data": 4242, "labels": 0,
    "evaluation": 1547, "runtime": 2565, "training": 1955, "adaptation": 0, "cli": 528, "fadepth_ros": 2332,
}  # fmt: skip
#: (column, row) of each package in the picture. Arrows point to a lower row.
PLACES = {
    "cli": (0.5, 0), "adaptation": (0.9, 1), "training": (1.2, 2), "labels": (0.1, 3), "evaluation": (1.2, 3), "fadepth_ros": (2.6, 3),
    "data": (0.4, 4), "losses": (1.4, 4), "runtime": (2.4, 4),
    "synthetic": (-0.2, 5), "models": (2, 5), "rendering": (-0.2, 6), "geometry": (1.9, 6), "messages": (2.9, 5), "common": (0.9, 6),
}  # fmt: skip
COLUMN, ROW, WIDTH, HEIGHT, MARGIN = 190, 92, 140, 48, 84


def package_of(module: tuple[str, ...]) -> str:
    """Package of a module given by its parts; the modules directly in fadepth_core are the command line."""
    if module[0] == "fadepth_ros":
        return "fadepth_ros"
    return module[1] if len(module) > 1 and module[1] in BEFORE else "cli"


def read_source(root: Path) -> tuple[dict[str, int], dict[str, set[str]]]:
    """Lines (as `wc -l`) and imported packages of each package."""
    lines, imports = defaultdict(int), defaultdict(set)
    for folder in ("fadepth_core", "fadepth_ros"):
        for path in sorted((root / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            package = package_of(path.relative_to(root).with_suffix("").parts)
            lines[package] += text.count("\n")
            for node in ast.walk(ast.parse(text)):
                name = node.module or "" if isinstance(node, ast.ImportFrom) else _named(node)
                module = tuple(name.split("."))
                if len(module) > 1 and module[0] in ("fadepth_core", "fadepth_ros"):
                    imports[package].add(package_of(module))
    return dict(lines), {package: imported - {package} for package, imported in imports.items()}


def _named(node: ast.AST) -> str:
    """The module in a string such as "fadepth_core.data.kitti:KittiDataset", by which registries import; else ""."""
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
    return text.partition(":")[0] if re.fullmatch(r"fadepth_(core|ros)(\.\w+)+(:\w+)?", text) else ""


def direct(imports: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that do not follow from others: a -> c is left out if a imports b and b imports c."""

    def reached(package: str) -> set[str]:
        below = imports.get(package, set())
        return below.union(*(reached(other) for other in below))

    return [
        (package, other)
        for package in PLACES
        for other in sorted(imports.get(package, ()))
        if not any(other in reached(third) for third in imports[package] - {other})
    ]


def picture(lines: dict[str, int], arrows: list[tuple[str, str]]) -> str:
    """The picture as SVG. Sizes are rounded to hundreds, so that it does not change with every commit."""

    def centre(package: str) -> tuple[float, float]:
        column, row = PLACES[package]
        return MARGIN + WIDTH / 2 + column * COLUMN, 8 + HEIGHT / 2 + row * ROW

    width, height = max(centre(p)[0] for p in PLACES) + WIDTH / 2 + 8, centre("common")[1] + HEIGHT / 2 + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif"'
        ' text-anchor="middle">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="9" markerHeight="9" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#7a80a0"/></marker></defs>',
    ]
    for package, other in arrows:
        (x0, y0), (x1, y1) = centre(package), centre(other)
        shift = 0.25 * max(-WIDTH, min(WIDTH, x1 - x0))  # start and end on the side that faces the other package
        parts.append(
            f'<line x1="{x0 + shift:.0f}" y1="{y0 + HEIGHT / 2:.0f}" x2="{x1 - shift:.0f}" y2="{y1 - HEIGHT / 2:.0f}"'
            ' stroke="#7a80a0" stroke-width="1.5" marker-end="url(#head)"/>'
        )
    for package in PLACES:
        x, y = centre(package)
        parts += [
            f'<rect x="{x - WIDTH / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="6"'
            ' fill="#eef0fb" stroke="#3f51b5"/>',
            f'<text x="{x:.0f}" y="{y - 3:.0f}" font-size="15" font-weight="bold" fill="#1a1a2e">{package}</text>',
            f'<text x="{x:.0f}" y="{y + 15:.0f}" font-size="12" fill="#44485c">{_hundreds(lines[package])} lines</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def table(lines: dict[str, int], imports: dict[str, set[str]]) -> str:
    """Sizes before and after the redesign, and all imports, in Markdown."""
    rows = ["| package | lines before | lines now | imports |", "|---|---|---|---|"]
    for package in reversed(PLACES):
        imported = ", ".join(name for name in reversed(PLACES) if name in imports.get(package, ()))
        before = _hundreds(BEFORE[package]) if BEFORE[package] else "-"
        rows.append(f"| `{package}` | {before} | {_hundreds(lines[package])} | {imported} |")
    rows.append(f"| all | {_hundreds(sum(BEFORE.values()))} | {_hundreds(sum(lines.values()))} | |")
    return "\n".join(rows)


def _hundreds(count: int) -> int:
    return round(count, -2)


def main() -> None:
    lines, imports = read_source(DOCS.parent)
    PICTURE.write_text(picture(lines, direct(imports)), encoding="utf-8")
    replace_section(PAGE, BEGIN, END, table(lines, imports))


if __name__ == "__main__":
    main()
