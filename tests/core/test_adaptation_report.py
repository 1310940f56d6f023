"""The page that shows whether an adapted network is better."""

import base64
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from fadepth_core.adaptation.report import Report, Row, Table, write_report
from fadepth_core.common.sample import LabelledImage
from fadepth_core.evaluation import PROTOCOLS, compare

METRIC = replace(PROTOCOLS["folder"], scaling="none")
#: A name that a person may give a recording, and that would break a page which does not escape it.
ODD = "<img src=x onerror=alert('1')> & \"co\""


def row(before=3.0, after=2.2, name="frame 1", truth=None):
    """A wall 2 m away, or the given true depth, predicted as walls at two other distances."""
    truth = np.full((48, 64), 2.0, np.float32) if truth is None else truth
    height, width = truth.shape
    k = np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1]])
    image = LabelledImage(np.full((height, width, 3), 128, np.uint8), truth, k, name)
    return Row(
        *(
            compare(lambda image, k, depth=depth: np.full((24, 32), 1 / depth), image, METRIC)
            for depth in (before, after)
        )
    )


REPORT = Report(
    title="drive.mcap",
    verdict="AbsRel on 60 frames held back fell from 0.50 to 0.10.",
    better=True,
    truth="LiDAR",
    rows=(row(),),
    tables=(Table("Figures", ("", "AbsRel"), (("before", "0.50"), ("after", "0.10"))),),
    curve=((0, 0.5), (10, 0.2), (20, 0.1), (30, 0.15)),
    notes=("No odometry.",),
    command="ros2 param set /depth checkpoint /tmp/robot.safetensors",
)


class Page(HTMLParser):
    """Elements, text and pictures of a page."""

    def __init__(self, source):
        super().__init__()
        self.source, self.tags, self.text, self.pictures = source, [], "", {}
        self.feed(source)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "img":
            kind, _, content = dict(attributes)["src"].partition(",")
            assert re.fullmatch("data:image/(png|jpeg);base64", kind), "all pictures are embedded"
            picture = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)
            self.pictures[dict(attributes)["alt"]] = picture

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def write(tmp_path):
    def written(**changes):
        write_report(replace(REPORT, **changes), tmp_path / "report.html")
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return written


def test_the_page_shows_everything_and_needs_no_other_file(write):
    page = write()
    for text in (REPORT.verdict, REPORT.command, "Measured against: LiDAR", "No odometry.", "0.100 after 20.0 min"):
        assert text in page.text
    assert "AbsRel 0.500 → 0.100, 80 % better" in page.text
    assert "Warning" not in page.text
    names = [f"{kind} {when}, frame 1" for kind in ("Depth", "Error", "From above") for when in ("before", "after")]
    assert {"Image, frame 1", "Truth, frame 1", *names} <= set(page.pictures)
    assert all(picture is not None for picture in page.pictures.values())
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "http" not in re.sub(r"http-equiv", "", page.source), "nothing is loaded from a network"


def test_a_network_that_became_worse_is_a_warning(write):
    page = write(better=False, rows=(row(before=2.2, after=3.0),), verdict="It rose from 0.10 to 0.50.", command="")
    assert "Warning: the adapted network is not better. The old checkpoint stays. It rose" in page.text
    assert "AbsRel 0.100 → 0.500, 400 % worse" in page.text
    assert not any(tag == "pre" for tag, _ in page.tags)


@pytest.mark.parametrize(
    "changes",
    [
        {"title": ODD},
        {"verdict": ODD},
        {"truth": ODD},
        {"rows": (row(name=ODD),)},
        {"tables": (Table(ODD, (ODD,), ((ODD,),), ODD),) * 2},
        {"notes": (ODD,)},
        {"command": ODD},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_names_are_escaped(write, changes):
    page = write(**changes)
    assert ODD in page.text
    assert "<img src=x" not in page.source
    assert all("onerror" not in attributes for _, attributes in page.tags)


def test_a_name_that_is_not_utf8(write):
    assert "ol?.mcap" in unescape(write(title="ol\udce9.mcap").source)


def test_depth_has_the_same_colours_before_and_after(write):
    """The nearer wall is brighter, the truth between them has a colour between theirs."""
    pictures = write(rows=(row(before=1.0, after=4.0),)).pictures
    before, truth, after = (pictures[f"{kind}, frame 1"].mean() for kind in ("Depth before", "Truth", "Depth after"))
    assert before > truth + 20 > after + 40


def test_sparse_truth_is_enlarged(write):
    """Single pixels, 1 in 200 as of a LiDAR, cover nine times their area in the pictures of truth and error."""
    truth = np.zeros((60, 80), np.float32)
    truth[5::20, 5::10] = 2
    pictures = write(rows=(row(truth=truth),)).pictures
    for name in ("Truth", "Error before", "Error after"):
        picture = pictures[f"{name}, frame 1"].astype(int)
        coloured = np.abs(picture - picture[-1, -1]).max(-1) > 40  # the image behind has one grey
        assert 6 < coloured.sum() / (truth > 0).sum() < 16, name


def test_a_page_without_frames_curve_tables_or_notes(write):
    page = write(rows=(), curve=(), tables=(), notes=())
    assert "No frame could be measured" in page.text
    assert not page.pictures
    assert not any(tag == "svg" for tag, _ in page.tags)


@pytest.mark.parametrize("curve", [((0, 0.3),), ((0, float("nan")), (1, 0.3)), ((0, 0.0), (2, 1e-9)), ((0, 900.0),)])
def test_curves_of_few_or_odd_points(write, curve):
    page = write(curve=curve)
    places = [float(value) for tag, a in page.tags if tag == "circle" for value in (a["cx"], a["cy"])]
    assert places
    assert all(0 <= place <= 480 for place in places)


def test_rows_and_tables_that_do_not_fit():
    with pytest.raises(ValueError, match="different frames"):
        Row(row(name="a").before, row(name="b").after)
    with pytest.raises(ValueError, match="1 cells in a row, 2 columns"):
        Table("Time", ("stage", "minutes"), (("labels",),))
