import numpy as np
from PIL import Image

from fedmlic.sources.headers import read_headers


def test_headers(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("L", (5, 9)).save(tmp_path / "b.jpg")
    Image.new("CMYK", (5, 9)).save(tmp_path / "c.jpg")
    (tmp_path / "d.jpg").write_text("none")

    found = read_headers([tmp_path / name for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")])

    assert found.sizes.tolist() == [[6, 4], [5, 9], [5, 9], [0, 0], [0, 0]]
    assert found.report["modes"] == {"CMYK": 1, "L": 1, "RGB": 1, "unreadable": 2}
    assert found.report["exif_turned"] == 1


def test_headers_count_modes_turned_and_unreadable_files(tmp_path):
    grey = Image.fromarray(np.zeros((4, 4), np.uint8))
    grey.save(tmp_path / "l.png")
    grey.convert("RGBA").save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    grey.convert("RGB").save(tmp_path / "t.jpg", exif=exif)
    (tmp_path / "bad.png").write_text("no image")

    report = read_headers(sorted(tmp_path.iterdir())).report

    assert report["modes"] == {"L": 1, "RGB": 1, "RGBA": 1, "unreadable": 1}
    assert report["exif_turned"] == 1


def test_frames_are_counted_and_a_turn_that_exif_does_not_know_is_none(tmp_path):
    picture = Image.new("L", (6, 4))
    picture.save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("L", (6, 4), 255)])
    exif = Image.Exif()
    exif[0x0112] = 9
    picture.save(tmp_path / "b.jpg", exif=exif)

    found = read_headers([tmp_path / "a.gif", tmp_path / "b.jpg"])

    assert found.several_frames == 1
    assert found.orientations.tolist() == [1, 1]
