"""`fadepth ablate`: variants of a run, their table with the paper's figures, and the files of the paper's Tables IV to XI."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from fadepth_core.training.ablation import AblationConfig, ablate
from fadepth_core.training.config import ConfigError, load_config, read_yaml, validated
from short_runs import ROOT, fadepth

TABLES = ROOT / "config" / "training" / "tables"
#: Rows of each table in the paper.
ROWS = {4: 18, 5: 8, 6: 6, 7: 17, 8: 7, 9: 7, 10: 40, 11: 5}

TINY = {
    "data": {"train": [{"name": "synthetic", "length": 2}], "size": [32, 64], "batch_size": 2, "workers": 0},
    "model": {"residual_drop": 0.0},
    "pose": {"network": "known"},
    "loss": {"levels": ["cr"]},
    "schedule": {"iterations": 1, "warmup": 1},
    "evaluation": {"data": {"name": "synthetic", "length": 2}},
}
PAPER = [0.1489, 1.0972, 5.7242, 0.2206, 0.7921]
VARIANTS = {"plain": ["model.etm=null"], "etm": {"set": ["model.etm=etm#"], "paper": PAPER}}

#: Replaces `fadepth fit`: writes the figures of a run without training.
FAKE_FIT = """
import json, pathlib, sys
folder = next(pathlib.Path(value.removeprefix("output=")) for value in sys.argv if value.startswith("output="))
figures = dict(abs_rel=0.5, sq_rel=1.5, rmse=6.5, rmse_log=0.25, d1=0.75, d2=0.85, d3=0.95)
(folder / "metrics.json").write_text(json.dumps({"figures": figures}))
"""


def write(folder: Path, variants: dict) -> Path:
    path = folder / "variants.yaml"
    path.write_text(yaml.safe_dump({"run": TINY, "variants": variants, "seeds": [3]}, sort_keys=False))
    return path


def test_a_variant_is_trained_once_and_measured(tmp_path):
    path = write(tmp_path, {"etm": VARIANTS["etm"]})
    result = fadepth("ablate", "--config", path, "--out", tmp_path / "out", "--jobs", 2)
    assert result.returncode == 0, result.stderr
    for row in ("constant depth", "etm"):
        assert re.search(rf"^{row} +\d", result.stdout, re.MULTILINE), result.stdout
    written = json.loads((tmp_path / "out" / "ablation.json").read_text())
    own = json.loads((tmp_path / "out" / "etm-3" / "metrics.json").read_text())
    assert written["variants"]["etm"][0]["abs_rel"] == own["figures"]["abs_rel"]
    assert "model:\n  name: smalldepth" in (tmp_path / "out" / "etm-3" / "config.yaml").read_text()
    before = (tmp_path / "out" / "etm-3" / "metrics.json").stat().st_mtime_ns
    again = fadepth("ablate", "--config", path, "--out", tmp_path / "out")
    assert again.returncode == 0, again.stderr
    assert again.stdout == result.stdout
    assert (tmp_path / "out" / "etm-3" / "metrics.json").stat().st_mtime_ns == before
    other = fadepth("ablate", "--config", path, "--out", tmp_path / "out", "--set", "schedule.iterations=3")
    assert other.returncode == 1
    assert re.search(
        r"error: .*etm-3: holds a run with other settings \(schedule\); choose another --out", other.stderr
    )


def test_the_papers_row_is_below_its_variant(tmp_path):
    table = ablate(write(tmp_path, VARIANTS), [], tmp_path / "out", [sys.executable, "-c", FAKE_FIT], jobs=2)
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["AbsRel", "SqRel", "RMSE", "RMSElog", "d<1.25"]
    assert lines[2:] == [
        ["plain", "0.5000", "1.5000", "6.5000", "0.2500", "0.7500"],
        ["etm", "0.5000", "1.5000", "6.5000", "0.2500", "0.7500"],
        ["paper:", "0.1489", "1.0972", "5.7242", "0.2206", "0.7921"],
    ]
    written = json.loads((tmp_path / "out" / "ablation.json").read_text())
    names = ("abs_rel", "sq_rel", "rmse", "rmse_log", "d1")
    assert written["paper"] == {"etm": dict(zip(names, PAPER, strict=True))}
    assert written["variants"]["plain"][0]["rmse"] == 6.5


def test_only_named_variants_are_trained(tmp_path):
    command = [sys.executable, "-c", FAKE_FIT]
    table = ablate(write(tmp_path, VARIANTS), [], tmp_path / "out", command, 1, only=["etm"])
    assert "etm" in table
    assert "plain" not in table
    assert not (tmp_path / "out" / "plain-3").exists()
    with pytest.raises(ConfigError, match="no variant emt; there are plain, etm"):
        ablate(tmp_path / "variants.yaml", [], tmp_path / "other", command, 1, only=["etm", "emt"])
    ablate(tmp_path / "variants.yaml", [], tmp_path / "out", command, 1, only=["plain"])
    assert json.loads((tmp_path / "out" / "ablation.json").read_text())["variants"].keys() == {"plain", "etm"}


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (["model.depth=3"], "variants.wrong: model.depth: Extra inputs are not permitted"),
        (["model.etm"], "variants.wrong: --set model.etm: expected key=value"),
        ({"set": ["model.etm=etm+"]}, "variants.wrong: model.etm"),
        ({"sets": []}, "variants.wrong.sets: Extra inputs are not permitted"),
        ({"paper": PAPER[:4]}, "variants.wrong.paper: Value error, expected AbsRel, SqRel, RMSE, RMSElog, d1"),
        ({"paper": [*PAPER[:4], 79.21]}, "variants.wrong.paper: Value error, d1 cannot be 79.21"),
        ({"paper": [float("nan"), *PAPER[1:]]}, "variants.wrong.paper: Value error, abs_rel cannot be nan"),
        ({"paper": ["low", *PAPER[1:]]}, "variants.wrong.paper.0: Input should be a valid number"),
    ],
)
def test_a_wrong_variant_is_named_before_any_is_trained(tmp_path, variant, message):
    path = write(tmp_path, {"right": [], "wrong": variant})
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {message}")):
        ablate(path, [], tmp_path / "out", ["false"], 1)
    assert not (tmp_path / "out" / "right-3").exists()


@pytest.mark.parametrize("number", ROWS)
def test_the_papers_tables_are_complete_and_without_repetition(number, tmp_path):
    path = TABLES / f"table_{number}.yaml"
    table = validated(AblationConfig, read_yaml(path), path)
    assert len(table.variants) == ROWS[number]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(table.run))
    settings = {}
    for name, variant in table.variants.items():
        config = load_config(tmp_path / "run.yaml", ["data.train.0.root=/data/kitti", *variant.set])
        assert config.data.train[0].options == {"root": "/data/kitti"}
        assert variant.paper is not None, name
        settings.setdefault(config.model_dump_json(), []).append(name)
    repeated = [names for names in settings.values() if len(names) > 1]
    assert not repeated, f"equal runs: {repeated}"
