"""Image files in, one PNG of the same name and size out, and only what is grey changes."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin
from typer.testing import CliRunner

from model import bundle as bundles
from model import cli
from model.apply import (
    ImageError,
    Job,
    Result,
    apply_file,
    despeckle_image,
    plan,
    run,
    write_compared,
)


def darker(grey):
    """Stands for a student: takes 10 grey levels away."""
    assert grey.dtype == np.uint8
    assert grey.ndim == 2
    return np.clip(grey.astype(int) - 10, 0, 255).astype(np.uint8)


def unchanged(grey):
    return grey.copy()


def ramp(rows=24, columns=37):
    y, x = np.mgrid[:rows, :columns]
    return ((x * 5 + y * 3) % 200 + 30).astype(np.uint8)


def picture(path, mode="L", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ramp()).convert(mode).save(path, **options)
    return path


def applied(image, method=darker):
    result, _ = despeckle_image(image, method)
    return np.asarray(result)


# --- pixels -----------------------------------------------------------------------------------


def test_grey_is_despeckled_as_it_is():
    np.testing.assert_array_equal(applied(Image.fromarray(ramp())), ramp() - 10)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (33, 1), (17, 23)])
def test_any_size_is_kept(shape):
    assert applied(Image.fromarray(ramp(*shape))).shape == shape


def test_grey_looking_rgb_stays_rgb():
    result, note = despeckle_image(Image.fromarray(ramp()).convert("RGB"), darker)
    assert result.mode == "RGB"
    assert not note
    np.testing.assert_array_equal(np.asarray(result), np.dstack([ramp() - 10] * 3))


def test_coloured_pixels_are_not_touched():
    pixels = np.dstack([ramp()] * 3)
    pixels[5:9, 10:20] = (200, 40, 10)
    result = applied(Image.fromarray(pixels))
    coloured = np.zeros(ramp().shape, bool)
    coloured[5:9, 10:20] = True
    np.testing.assert_array_equal(result[coloured], pixels[coloured])
    np.testing.assert_array_equal(result[~coloured], pixels[~coloured] - 10)


def test_slight_tint_of_jpeg_stays_on_the_grey_that_changes():
    pixels = np.dstack([ramp(), ramp() + 2, ramp() + 5])
    result = applied(Image.fromarray(pixels)).astype(int)
    np.testing.assert_array_equal(result - pixels, -10)


@pytest.mark.parametrize("level", [0, 5, 128, 255])
def test_boxes_of_one_level_stay_whatever_the_level(level):
    pixels = ramp(90, 120)
    pixels[20:60, 30:100] = level
    pixels[30, 40] = max(level - 1, 0)
    result = applied(Image.fromarray(pixels))
    box = np.zeros(pixels.shape, bool)
    box[20:60, 30:100] = True
    np.testing.assert_array_equal(result[box], pixels[box])
    np.testing.assert_array_equal(result[~box], pixels[~box] - 10)


def test_a_tinted_picture_is_said_to_be_despeckled_in_part():
    sepia = np.dstack([ramp(), ramp() * 0.97, ramp() * 0.85]).astype(np.uint8)
    _, note = despeckle_image(Image.fromarray(sepia), darker)
    assert "tinted" in note
    captioned = np.dstack([ramp()] * 3)
    captioned[:2, :10] = (200, 40, 10)
    assert despeckle_image(Image.fromarray(captioned), darker)[1] == ""


def test_a_wholly_coloured_picture_is_said_to_be_unchanged():
    pixels = np.zeros((8, 8, 3), np.uint8) + np.array([200, 20, 20], np.uint8)
    result, note = despeckle_image(Image.fromarray(pixels), darker)
    np.testing.assert_array_equal(np.asarray(result), pixels)
    assert "nothing was changed" in note


def test_alpha_is_kept_bit_by_bit():
    alpha = np.linspace(0, 255, ramp().size).reshape(ramp().shape).astype(np.uint8)
    rgba = applied(Image.fromarray(np.dstack([ramp()] * 3 + [alpha]), "RGBA"))
    np.testing.assert_array_equal(rgba[..., 3], alpha)
    np.testing.assert_array_equal(rgba[..., 0], ramp() - 10)
    grey = applied(Image.fromarray(np.dstack([ramp(), alpha]), "LA"))
    np.testing.assert_array_equal(grey[..., 1], alpha)
    np.testing.assert_array_equal(grey[..., 0], ramp() - 10)


def test_palette_is_expanded_and_its_colours_stay():
    indices = np.zeros((6, 8), np.uint8)
    indices[:, 4:] = 1
    image = Image.fromarray(indices, "P")
    image.putpalette([100, 100, 100, 250, 30, 0])
    result = applied(image)
    assert (result[:, :4] == 90).all()
    assert (result[:, 4:] == (250, 30, 0)).all()


def test_palette_transparency_becomes_alpha(tmp_path):
    image = Image.fromarray(np.eye(6, dtype=np.uint8), "P")
    image.putpalette([100, 100, 100, 60, 60, 60])
    image.save(tmp_path / "p.png", transparency=1)
    with Image.open(tmp_path / "p.png") as opened:
        result = applied(opened)
    np.testing.assert_array_equal(result[..., 3], np.where(np.eye(6), 0, 255))


def test_bilevel_and_cmyk_are_taken():
    assert applied(Image.fromarray(ramp() > 100)).shape == ramp().shape
    assert applied(Image.fromarray(ramp()).convert("CMYK")).shape == (*ramp().shape, 3)


def test_sixteen_bits_stay_sixteen_bits_and_change_by_the_same_share():
    pixels = ramp().astype(np.uint16) * 257 + 3
    result = applied(Image.fromarray(pixels))
    assert result.dtype == np.uint16
    np.testing.assert_array_equal(result, pixels - 10 * 257)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_of_colour_or_alpha_are_refused(tmp_path, colour_type, channels):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 4, 4, 16, colour_type, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x12\x34" * 4 * channels) * 4)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    source = tmp_path / "deep.png"
    source.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(ImageError, match="16 bits"):
        apply_file(Job(source, tmp_path / "out.png"), darker)
    assert not (tmp_path / "out.png").exists()


def test_twelve_bits_in_a_sixteen_bit_file_are_seen_as_such():
    pixels = (ramp().astype(np.uint16) * 16) + 5
    result, note = despeckle_image(Image.fromarray(pixels), darker)
    assert "12-bit" in note
    np.testing.assert_allclose(np.asarray(result), pixels - 10 * 4095 / 255, atol=0.51)


def test_frames_of_one_folder_are_taken_as_of_one_depth(tmp_path):
    dim = ramp().astype(np.uint16) * 4
    bright = dim.copy()
    bright[0, 0] = 4000
    sources = [tmp_path / "dim.png", tmp_path / "bright.png"]
    for source, pixels in zip(sources, (dim, bright), strict=True):
        Image.fromarray(pixels).save(source)
    (tmp_path / "broken.png").write_bytes(b"no image")
    jobs, _ = plan([tmp_path], tmp_path / "out")
    notes = {result.job.source.name: result.note or result.error for result in run(jobs, darker)}
    assert notes["dim.png"] == notes["bright.png"] == "16-bit file taken as 12-bit grey levels"
    assert "broken" not in notes["broken.png"]
    results = [np.asarray(Image.open(tmp_path / "out" / source.name)) for source in sources]
    np.testing.assert_array_equal(results[0].ravel()[1:], results[1].ravel()[1:])


@pytest.mark.parametrize("maximum", [255, 1023, 4095, 65535])
def test_a_method_that_changes_nothing_leaves_sixteen_bits_bit_by_bit(maximum):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, maximum + 1, (30, 30)).astype(np.uint16)
    np.testing.assert_array_equal(applied(Image.fromarray(pixels), unchanged), pixels)


def test_sixteen_bits_whose_white_is_zero_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    pixels = Image.fromarray(ramp().astype(np.uint16) * 257)
    pixels.save(path, tiffinfo={TiffImagePlugin.PHOTOMETRIC_INTERPRETATION: 0})
    with Image.open(path) as image, pytest.raises(ImageError, match="black as 0"):
        despeckle_image(image, darker)


def test_sixteen_bits_with_a_transparent_level_are_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(ramp().astype(np.uint16) * 257).save(path, transparency=257)
    with Image.open(path) as image, pytest.raises(ImageError, match="transparent"):
        despeckle_image(image, darker)


def test_floating_point_pixels_are_refused_with_the_reason():
    with pytest.raises(ImageError, match="floating-point"):
        despeckle_image(Image.fromarray(np.zeros((4, 4), np.float32)), darker)


def test_grey_levels_are_never_stretched():
    narrow = np.full((20, 20), 100, np.uint8)
    narrow[5:10] = 104
    np.testing.assert_array_equal(applied(Image.fromarray(narrow), unchanged), narrow)


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.png", "L"),
        ("a.jpg", "L"),
        ("a.jpeg", "RGB"),
        ("a.bmp", "L"),
        ("a.tif", "L"),
        ("a.TIFF", "RGB"),
        ("p.png", "P"),
    ],
)
def test_one_png_of_the_same_name_and_size(tmp_path, name, mode):
    source = picture(tmp_path / "in" / name, mode)
    jobs, errors = plan([source], tmp_path / "out")
    assert not errors
    assert [result.error for result in run(jobs, darker)] == [""]
    with Image.open(tmp_path / "out" / f"{source.stem}.png") as result:
        assert result.format == "PNG"
        assert result.size == (37, 24)


def test_a_bad_file_is_named_and_the_others_go_on(tmp_path):
    good = picture(tmp_path / "good.png")
    text = tmp_path / "text.png"
    text.write_text("not an image")
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    empty = tmp_path / "empty.jpg"
    empty.touch()
    jobs, errors = plan([text, cut, empty, good, tmp_path / "missing.png"], tmp_path / "out")
    results = {result.job.source.name: result.error for result in run(jobs, darker)}
    assert not results["good.png"]
    assert "read" in results["text.png"]
    assert "read" in results["cut.png"]
    assert "read" in results["empty.jpg"]
    assert [error.job.source.name for error in errors] == ["missing.png"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]


def test_a_cine_in_one_file_is_refused(tmp_path):
    path = tmp_path / "cine.tif"
    frames = [Image.fromarray(ramp()) for _ in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="3 frames"):
        apply_file(Job(path, tmp_path / "out.png"), darker)


def test_an_image_is_never_overwritten_by_its_result(tmp_path):
    source = picture(tmp_path / "a.png")
    before = source.read_bytes()
    jobs, _ = plan([source], tmp_path)
    assert "overwrite" in next(iter(run(jobs, darker))).error
    assert source.read_bytes() == before


def test_a_result_replaces_no_image_but_an_earlier_result(tmp_path):
    picture(tmp_path / "a.jpg", "RGB")
    original = picture(tmp_path / "named" / "a.png")
    before = original.read_bytes()
    jobs, _ = plan([tmp_path / "a.jpg", tmp_path / "named"], tmp_path / "named")
    assert any(job.target == original for job in jobs)
    results = list(run(jobs, darker))
    assert original.read_bytes() == before
    (failed,) = (result for result in results if result.error)
    assert "bears no mark of this command" in failed.error

    written = Job(original, tmp_path / "out" / "a.png")
    apply_file(written, darker)
    apply_file(written, unchanged)
    np.testing.assert_array_equal(np.asarray(Image.open(written.target)), ramp())


def test_a_result_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    source = picture(tmp_path / "a.png")
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    with pytest.raises(ImageError, match="cannot write"):
        apply_file(Job(source, blocked / "a.png"), darker)


def test_orientation_and_resolution_are_kept_and_other_metadata_is_not(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = "Doe^Jane"
    source = picture(tmp_path / "a.jpg", exif=exif, dpi=(300, 300), comment=b"Doe^Jane")
    apply_file(Job(source, tmp_path / "out" / "a.png"), darker)
    written = (tmp_path / "out" / "a.png").read_bytes()
    assert b"Doe" not in written
    with Image.open(io.BytesIO(written)) as result:
        assert result.getexif()[ExifTags.Base.Orientation] == 6
        assert result.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert result.size == (37, 24)


def test_colour_profile_is_kept(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = picture(tmp_path / "a.png", "RGB", icc_profile=profile)
    apply_file(Job(source, tmp_path / "out.png"), darker)
    with Image.open(tmp_path / "out.png") as result:
        assert result.info["icc_profile"] == profile


# --- names ------------------------------------------------------------------------------------


def targets(jobs, output):
    return sorted(job.target.relative_to(output).as_posix() for job in jobs)


def test_files_of_distinct_names_lie_flat(tmp_path):
    picture(tmp_path / "in/x/1.png")
    picture(tmp_path / "in/y/2.jpg")
    jobs, _ = plan([tmp_path / "in"], tmp_path / "out")
    assert targets(jobs, tmp_path / "out") == ["1.png", "2.png"]


def test_folders_are_kept_where_names_collide(tmp_path):
    picture(tmp_path / "in/x/1.png")
    picture(tmp_path / "in/y/1.png")
    jobs, _ = plan([tmp_path / "in"], tmp_path / "out")
    assert targets(jobs, tmp_path / "out") == ["x/1.png", "y/1.png"]
    jobs, _ = plan([tmp_path / "in/x", tmp_path / "in/y"], tmp_path / "out")
    assert targets(jobs, tmp_path / "out") == ["x/1.png", "y/1.png"]
    jobs, _ = plan([tmp_path / "in/x/1.png", tmp_path / "in/y/1.png"], tmp_path / "out")
    assert targets(jobs, tmp_path / "out") == ["x/1.png", "y/1.png"]


def test_nothing_is_written_beside_the_output(tmp_path, monkeypatch):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        picture(tmp_path / folder / "a.png")
    monkeypatch.chdir(tmp_path / "here")
    jobs, _ = plan([Path("a.png"), Path("../there/a.png")], Path("out"))
    assert targets(jobs, Path("out")) == ["here/a.png", "there/a.png"]


def test_a_profile_of_inks_is_not_said_of_red_green_and_blue(tmp_path):
    source = tmp_path / "a.tif"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("CMYK", (40, 30), (0, 0, 0, 90)).save(source, icc_profile=profile)
    apply_file(Job(source, tmp_path / "b.png"), darker)
    with Image.open(tmp_path / "b.png") as result:
        assert "icc_profile" not in result.info


def test_whole_names_are_kept_where_even_folders_do_not_tell_apart(tmp_path):
    picture(tmp_path / "in/a.png")
    picture(tmp_path / "in/a.jpg")
    picture(tmp_path / "in/b.png")
    jobs, _ = plan([tmp_path / "in"], tmp_path / "out")
    assert targets(jobs, tmp_path / "out") == ["a.jpg.png", "a.png.png", "b.png"]


def test_names_that_differ_in_case_alone_do_not_overwrite_one_another(tmp_path):
    picture(tmp_path / "in/x/Scan.png")
    picture(tmp_path / "in/y/scan.png")
    jobs, _ = plan([tmp_path / "in"], tmp_path / "out")
    assert targets(jobs, tmp_path / "out") == ["x/Scan.png", "y/scan.png"]


def test_a_file_named_twice_is_done_once(tmp_path):
    source = picture(tmp_path / "in/a.png")
    jobs, _ = plan([source, tmp_path / "in", source], tmp_path / "out")
    assert len(jobs) == 1


def test_results_of_an_earlier_run_are_not_taken_as_images(tmp_path):
    picture(tmp_path / "in/a.png")
    for _ in range(2):
        jobs, _ = plan([tmp_path / "in"], tmp_path / "in/out")
        assert [job.source.name for job in jobs] == ["a.png"]
        list(run(jobs, darker))


def test_an_empty_folder_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    jobs, errors = plan([tmp_path / "in"], tmp_path / "out")
    assert not jobs
    assert "no PNG" in errors[0].error


# --- command ----------------------------------------------------------------------------------


class FakeBundle:
    def self_test(self):
        """Nothing to compare with."""

    def apply(self, image, strength=1.0):
        return image if strength == 0 else darker(image)


@pytest.fixture
def fake_bundle(monkeypatch):
    monkeypatch.setattr(bundles, "load", lambda _name: FakeBundle())


def test_command_writes_what_it_can_and_fails_for_the_rest(tmp_path, fake_bundle):
    picture(tmp_path / "in/good.png")
    (tmp_path / "in/bad.png").write_text("no")
    out = tmp_path / "out"
    result = CliRunner().invoke(cli.app, ["apply", str(tmp_path / "in"), "--output", str(out)])
    assert result.exit_code == 1
    assert "bad.png" in result.output
    assert "1 written" in result.output
    assert [path.name for path in out.iterdir()] == ["good.png"]


def test_command_at_strength_zero_gives_the_pixels_back(tmp_path, fake_bundle):
    source = picture(tmp_path / "a.png")
    out = tmp_path / "out"
    arguments = ["apply", str(source), "--output", str(out), "--strength", "0"]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    with Image.open(out / "a.png") as result:
        np.testing.assert_array_equal(np.asarray(result), ramp())


def test_command_names_an_unknown_bundle_and_writes_nothing(tmp_path):
    source = picture(tmp_path / "a.png")
    out = tmp_path / "out"
    arguments = ["apply", str(source), "--output", str(out), "--bundle", "no-such-bundle"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert "no-such-bundle" in result.output
    assert not out.exists()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
def test_command_shows_before_after_and_what_was_removed(tmp_path, fake_bundle, mode):
    folder = tmp_path / "in"
    source = picture(folder / "a.png", mode if mode != "I;16" else "L")
    if mode == "I;16":
        Image.fromarray(ramp().astype(np.uint16) * 257).save(source)
    command = ["apply", str(folder), "--output", str(folder / "out"), "--pictures", str(folder)]
    for _ in range(2):
        result = CliRunner().invoke(cli.app, command)
        assert result.exit_code == 0, result.output
    assert sorted(path.name for path in folder.rglob("*.png")) == [
        "a.compared.png",
        "a.png",
        "a.png",
    ]
    shown = np.asarray(Image.open(folder / "a.compared.png"))[20:, :, 0].astype(int)
    before, after = shown[:, :37], shown[:, 45:82]
    assert np.abs(before - ramp()).max() <= 1
    assert np.abs(before - after - 10).max() <= 1


def test_picture_shows_16_bit_levels_of_both_on_the_scale_of_the_source(tmp_path):
    pixels = np.full((40, 50), 1000, np.uint16)
    pixels[20, 20] = 1100
    Image.fromarray(pixels).save(tmp_path / "a.png")
    job = Job(tmp_path / "a.png", tmp_path / "out" / "a.png")
    apply_file(job, lambda image: np.full_like(image, image.min()))
    write_compared(Result(job, bits=12), tmp_path / "out", tmp_path / "pictures")
    shown = np.asarray(Image.open(tmp_path / "pictures" / "a.compared.png"))[20:, :, 0].astype(int)
    assert np.abs(shown[:10, :50] - shown[:10, 58:108]).max() <= 1


def test_pictures_of_one_folder_show_16_bit_levels_on_one_scale(tmp_path):
    dim = np.full((40, 50), 500, np.uint16)
    bright = dim.copy()
    bright[0, 0] = 4000
    for name, pixels in (("dim", dim), ("bright", bright)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    jobs, _ = plan([tmp_path], tmp_path / "out")
    for result in run(jobs, darker):
        write_compared(result, tmp_path / "out", tmp_path / "pictures")
    shown = [
        np.asarray(Image.open(tmp_path / "pictures" / f"{name}.compared.png"))[21:60, :50, 0]
        for name in ("dim", "bright")
    ]
    assert shown[0].max() == 500 * 255 // 4095
    np.testing.assert_array_equal(*shown)
