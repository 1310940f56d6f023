"""Searches see the user's files only, whatever systems, tools and this program put beside them."""

from __future__ import annotations

import json
import os

import cv2
import numpy as np
import pytest

from fadepth_core.common.errors import DataError
from fadepth_core.common.folders import files_in, folders_below, mark_output, visible
from fadepth_core.data.frames import Frames
from fadepth_core.data.images import read_rgb
from fadepth_core.data.pictures import PictureDataset
from fadepth_core.data.video import open_clips
from fadepth_core.evaluation import write_predictions

SIZE = (64, 96)
CAMERA = json.dumps({"fx": 190, "fy": 190, "cx": 80, "cy": 48, "fps": 25})
PICTURE = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
#: A name that is not valid UTF-8, as unpacked from an archive of another system.
NO_TEXT = os.fsdecode(b"gar\xe7on")


def write_picture(path, picture=PICTURE):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, picture)[1].tobytes())


@pytest.fixture
def hall(tmp_path):
    """A clip `clips/hall` of four frames."""
    folder = tmp_path / "clips" / "hall"
    for number in range(4):
        write_picture(folder / f"{number}.png", np.roll(PICTURE, 4 * number, 1))
    (folder / "camera.json").write_text(CAMERA)
    return folder


def clips(root, tmp_path):
    return [clip.name for clip in open_clips(root, SIZE, cache=tmp_path / "cache")]


JUNK = [
    *("._0.png", ".0.png", ".ipynb_checkpoints/0.png", ".Trash-1000/files/0.png", "__MACOSX/._0.png", "Thumbs.db"),
    *(
        "@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg",
        "$RECYCLE.BIN/0.png",
        ".git/x/0.png",
        "._hall.mp4",
        "desktop.ini",
        "0.png~",
    ),
]


@pytest.mark.parametrize("name", JUNK)
def test_hidden_files_and_those_of_systems_are_not_the_users(hall, tmp_path, name):
    for place in (hall, hall.parent):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0\5\x16\7" + bytes(100))
    assert clips(hall.parent, tmp_path) == ["hall"]
    assert [name for name, _ in Frames(hall)] == ["0", "1", "2", "3"]
    assert len(PictureDataset(hall.parent, SIZE)) == 4


def test_a_circle_of_links_is_searched_once(hall, tmp_path):
    (hall / "back").symlink_to(hall.parent)
    (hall.parent / "again").symlink_to(hall)
    (hall.parent / "nothing").symlink_to(tmp_path / "gone")
    elsewhere = tmp_path / "elsewhere"
    for number in range(3):
        write_picture(elsewhere / f"{number}.JPG")
    (elsewhere / "camera.json").write_text(CAMERA)
    (hall.parent / "linked").symlink_to(elsewhere)
    assert clips(hall.parent, tmp_path) == ["hall", "linked"]
    assert len(PictureDataset(hall.parent, SIZE)) == 7
    assert [folder.name for folder in folders_below(hall.parent)].count("hall") == 1


@pytest.mark.parametrize("fps", [None, 25.0])
def test_our_own_results_are_no_clips(hall, tmp_path, fps):
    depth = [("0", np.ones((96, 160), np.float32)), ("1", np.ones((96, 160), np.float32))]
    for out in (hall.parent / "hall_depth", hall, hall.parent):
        write_predictions(depth, out, fps=fps)
    assert clips(hall.parent, tmp_path) == ["hall"]
    (hall.parent / "sheet").mkdir()
    write_picture(hall.parent / "sheet" / "video.png")
    mark_output(hall.parent / "sheet", ["video.png"])
    mark_output(hall.parent / "sheet", ["video.png"])
    assert (hall.parent / "sheet" / ".fadepth-output").read_text() == "video.png\n"
    assert clips(hall.parent, tmp_path) == ["hall"]


def test_a_result_does_not_replace_the_users_files(hall, caplog):
    """A folder `depth` beside pictures is often their true depth."""
    write_picture(hall / "depth" / "0.png")
    truth = (hall / "depth" / "0.png").read_bytes()
    depth = [("0", np.ones((96, 160), np.float32))]
    with pytest.raises(DataError, match="hall/depth: exists, and fadepth did not write it"):
        write_predictions(depth, hall)
    assert (hall / "depth" / "0.png").read_bytes() == truth
    assert not (hall / ".fadepth-output").exists()
    out = hall.parent / "out"
    (out / "depth").mkdir(parents=True)
    (out / "color.mp4").write_bytes(b"own")
    for fps in (None, None, 25.0):
        write_predictions(depth, out, fps=fps)
    assert (out / "color.mp4").read_bytes() == b"own"
    assert [record.getMessage() for record in caplog.records] == [
        f"{out / 'color.mp4'}: exists, and fadepth did not write it; move it, or write to another folder; "
        "depth is written without colours"
    ]
    (out / "color.mp4").unlink()
    (out / "color.mp4").symlink_to("elsewhere.mp4")
    write_predictions(depth, out, fps=25.0)
    assert not (out / "elsewhere.mp4").exists()
    (out / "color.mp4").unlink()
    caplog.clear()
    for _ in range(2):
        write_predictions(depth, out, fps=25.0)
    assert not caplog.records


def test_a_prediction_does_not_replace_the_depth_of_a_data_set(tmp_path):
    """Also if this program has written it: `depth` is then listed as output."""
    write_picture(tmp_path / "depth" / "0.png")
    truth = (tmp_path / "depth" / "0.png").read_bytes()
    mark_output(tmp_path, ["rgb", "depth"])
    intrinsics = {"fx": 190, "fy": 190, "cx": 80, "cy": 48}
    entry = {"id": "0", "rgb": "rgb/0.jpg", "depth": "depth/0.png", **intrinsics}
    (tmp_path / "index.json").write_text(json.dumps([entry]))
    with pytest.raises(DataError, match=r"depth: has the depth that .*index\.json lists"):
        write_predictions([("0", np.ones((96, 160), np.float32))], tmp_path)
    assert (tmp_path / "depth" / "0.png").read_bytes() == truth
    (tmp_path / "index.json").write_text("<html>")
    write_predictions([("0", np.ones((96, 160), np.float32))], tmp_path)


@pytest.mark.parametrize("source", [".", "./", "..", "../hall", "../hall/."])
def test_the_current_folder_is_a_clip(hall, tmp_path, monkeypatch, source):
    monkeypatch.chdir(hall)
    assert clips(source, tmp_path) == ["hall"]
    if source != "..":
        assert Frames(source).camera().name == "camera.json"
        (hall / "camera.json").rename(hall.parent / "hall.json")
        assert Frames(source).camera().name == "hall.json"
        assert clips(source, tmp_path) == ["hall"]


@pytest.mark.parametrize("name", ["Flur ä", "廊下", NO_TEXT, "a b'c\"d", "-x", "line\nend"])
def test_any_name_of_a_file_or_folder_is_read(tmp_path, name):
    folder = tmp_path / name
    for number in range(3):
        write_picture(folder / f"{name}{number}.PNG")
    (folder / "camera.json").write_text(CAMERA)
    assert clips(tmp_path, tmp_path) == [name]
    assert [found for found, _ in Frames(folder)] == [f"{name}{number}" for number in range(3)]
    assert len(PictureDataset(tmp_path, SIZE)) == 3
    assert PictureDataset(tmp_path, SIZE)[2].frames.shape == (1, 3, *SIZE)


def test_a_video_whose_name_opencv_cannot_open_is_named(tmp_path):
    path = tmp_path / f"{NO_TEXT}.mp4"
    path.write_bytes(b"any")
    with pytest.raises(DataError, match="OpenCV cannot open a video with this name; rename the file"):
        Frames(path)


def test_numbers_in_names_give_the_order(tmp_path):
    names = ["1.png", "2.PNG", "10.png", "²3.png", "a1.png", "a٣.png"]
    for name in reversed(names):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in files_in(tmp_path, {".png"})][:3] == names[:3]
    assert {path.name for path in visible(tmp_path)} == set(names)


def test_an_empty_or_missing_frame_is_named(hall, tmp_path):
    (hall / "2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2\.png: the file is empty"):
        clips(hall, tmp_path)
    (hall / "2.png").unlink()
    (hall / "2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"2\.png: cannot be read: No such file"):
        Frames(hall)
    (hall / "2.png").unlink()
    (hall / "2.png").mkdir()  # a folder with the name of a picture
    assert len(list(Frames(hall))) == 3


def test_a_rotated_picture_is_read_as_it_is_shown(tmp_path):
    """EXIF orientation 6: the camera was turned; programs show the picture rotated clockwise."""
    jpeg = cv2.imencode(".jpg", PICTURE, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\10\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    path = tmp_path / "turned.jpg"
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:])
    assert read_rgb(path).shape == (160, 96, 3)
    (tmp_path / "camera.json").write_text(
        json.dumps({"fx": 190, "fy": 190, "cx": 80, "cy": 48, "width": 160, "height": 96})
    )
    with pytest.raises(DataError, match=r"for 160x96 pixels, but .* has 96x160; .* as it is shown"):
        clips(tmp_path, tmp_path)
