"""One function over many inputs: in processes, on a Ray cluster, and as commands with `--jobs`."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs_to_run import copy, work

from fadepth_core.cli import main
from fadepth_core.cli_jobs import find_bags, run_each, unique_names
from fadepth_core.common.cpus import usable_cpus
from fadepth_core.common.errors import DataError
from fadepth_core.common.jobs import run_jobs

#: Seconds; enough for any machine, however busy.
PATIENCE = 600.0


def check_outcomes(outcomes, seen, logs, crash):
    assert [outcome.name for outcome in outcomes] == ["good", "data", "bug", "crash"]
    assert sorted(outcome.name for outcome in seen) == sorted(outcome.name for outcome in outcomes)
    good, data, bug, crashed = outcomes
    assert not good.failed
    assert (data.failed, data.text) == (True, "drive.mcap: no images")
    assert (bug.failed, bug.text) == (True, "ZeroDivisionError: division by zero")
    assert crashed.failed
    assert crash in crashed.text
    assert (logs / "good.log").read_text() == "working on good\n"
    assert "Traceback" in (logs / "bug.log").read_text()


INPUTS = {kind: kind for kind in ("good", "data", "bug", "crash")}


def test_a_failure_or_a_crash_does_not_end_the_others(tmp_path):
    seen = []
    outcomes = run_jobs(work, INPUTS, jobs=2, logs=tmp_path, on_end=seen.append)
    check_outcomes(outcomes, seen, tmp_path, "ended by signal 9")
    assert outcomes[0].text == f"{max(1, usable_cpus() // 2)} processors"


@pytest.mark.slow  # a cluster takes several processors while it starts
def test_a_ray_cluster_gives_the_same_outcomes(tmp_path, monkeypatch):
    """A cluster of one machine. Its workers import this file."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    seen = []
    outcomes = run_jobs(work, INPUTS, jobs=1, cluster="local", logs=tmp_path, on_end=seen.append)
    check_outcomes(outcomes, seen, tmp_path, "its process was ended")


def test_a_cluster_needs_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"fadepth_ros\[cluster\]"):
        run_jobs(work, INPUTS, cluster="auto")


SLEEPS = """
import signal, sys, time
from pathlib import Path
from fadepth_core.common.jobs import run_jobs

def sleep(path):
    path.with_suffix(".begun").touch()
    try:
        time.sleep(1000)
    finally:
        path.with_suffix(".ended").touch()
    return ""

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    folder = Path(sys.argv[1])
    run_jobs(sleep, {name: folder / name for name in "abc"}, jobs=2)
"""


def test_ctrl_c_ends_all(tmp_path):
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    process = subprocess.Popen([sys.executable, tmp_path / "sleeps.py", tmp_path], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while len(list(tmp_path.glob("*.begun"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode
    assert errors.count("KeyboardInterrupt") == 1, "only the parent's"
    assert sorted(path.name for path in tmp_path.glob("*.*ed")) == ["a.ended", "b.ended"], "cleaned up; c was not begun"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/x.mcap", "b/y.mcap"], ["x", "y"]),
        (["a/x.mcap", "b/x.mcap", "z"], ["a_x", "b_x", "z"]),
        (["a/x.mcap", "a/x.bag"], ["x.mcap", "x.bag"]),
    ],
)
def test_results_have_the_names_of_their_inputs(paths, names):
    assert unique_names([Path(path) for path in paths]) == names


def test_recordings_are_found_in_folders_and_by_patterns(tmp_path):
    for name in ("monday/metadata.yaml", "monday/0.db3", "more/b.mcap", "more/c.mcap", "more/deep/d.bag", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def found(*paths):
        return [str(path.relative_to(tmp_path)) for path in find_bags([tmp_path / path for path in paths])]

    assert found("more/b.mcap", "monday") == ["more/b.mcap", "monday"]
    assert found("more") == ["more/b.mcap", "more/c.mcap", "more/deep"]
    assert found("more/*.mcap", "more/b.mcap") == ["more/b.mcap", "more/c.mcap"]
    with pytest.raises(DataError, match="nothing fits this pattern"):
        found("*.mcap")


def test_a_command_over_several_inputs_leaves_out_what_is_done(tmp_path, capfd):
    texts = {"hall": "a", "empty": "", "yard": "b"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    args = argparse.Namespace(out=tmp_path / "out", jobs=3, cluster=None, quality=95)

    def run():
        run_each(copy, args, "source", [tmp_path / name for name in texts])

    with pytest.raises(DataError, match="1 of 3 inputs failed: empty"):
        run()
    assert "2 of 3 inputs are done" in capfd.readouterr().out
    assert (tmp_path / "out" / "yard").read_text() == "b"
    (tmp_path / "empty").write_text("no longer")
    run()
    rows = [line.split(maxsplit=4) for line in capfd.readouterr().out.splitlines() if line.startswith("ok")]
    assert {row[1] for row in rows if row[-1] == "was done before"} == {"hall", "yard"}
    args.quality = 90
    run()
    assert "was done before" not in capfd.readouterr().out, "with other options the result may be another one"


@pytest.mark.parametrize("command", ["extract", "stereo", "predict"])
def test_commands_take_several_inputs(command, tmp_path, monkeypatch):
    """A folder, a pattern; the option --jobs."""
    for name in ("mon.mcap", "tue.mcap"):
        (tmp_path / name).touch()
    inputs, calls = [str(tmp_path / "*.mcap")], []
    if command == "stereo":
        inputs = [str(tmp_path / "mon.mcap"), str(tmp_path / "tue.mcap")]
    module = "cli_bags" if command == "extract" else "cli"
    monkeypatch.setattr(
        f"fadepth_core.{module}.run_each", lambda run, args, key, found, *more: calls.append((found, args))
    )
    assert main([command, *inputs, "--out", str(tmp_path / "out"), "--jobs", "2"]) == 0
    ((found, args),) = calls
    assert [path.name for path in found] == ["mon.mcap", "tue.mcap"]
    assert args.jobs == 2
