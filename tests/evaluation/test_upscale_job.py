from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageCms

from idc_ray.config.upscale import UpscaleConfig
from idc_ray.errors import BadRequest, IdcError, QuarantinedImages
from idc_ray.evaluation.upscale_job import output_names, run_upscale
from idc_ray.images import decode_png, resize
from idc_ray.models import ModelSpec, bundled_teacher_bytes, load_upscaler
from tests.models.conftest import save_checkpoint


def picture(height: int = 20, width: int = 28, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photographs in folders, and one that is cut short."""
    folder = tmp_path / "photos"
    (folder / "2024" / "may").mkdir(parents=True)
    Pillow.fromarray(picture(seed=1)).save(folder / "one.png")
    Pillow.fromarray(picture(seed=2)).save(folder / "2024" / "may" / "two.bmp")
    whole = (folder / "one.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("none of it")
    return folder


def config(photos: Path, **changed: Any) -> UpscaleConfig:
    values = {"model": "bicubic", "input": str(photos), "output": str(photos.parent / "larger"), "device": "cpu"}
    return UpscaleConfig.model_validate(values | changed)


def written(photos: Path) -> dict[str, bytes]:
    out = photos.parent / "larger"
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_folders_and_names_stay_and_a_bad_file_is_reported(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_upscale(config(photos)) == 0
    files = written(photos)
    assert set(files) == {"one.png", "2024/may/two.png", "upscale.json"}
    assert np.array_equal(decode_png(files["one.png"]), resize.upscale(picture(seed=1), 2))
    assert np.array_equal(decode_png(files["2024/may/two.png"]), resize.upscale(picture(seed=2), 2))
    told = capsys.readouterr().out
    assert "2 done, 1 failed" in told
    assert "  cut.png: truncated: " in told
    with pytest.raises(QuarantinedImages, match="1 images could not be upscaled and --strict was given"):
        run_upscale(config(photos, strict=True))


def test_no_image_at_all_is_an_error(photos: Path) -> None:
    with pytest.raises(IdcError, match="none of the 1 images could be upscaled") as caught:
        run_upscale(config(photos, input=str(photos / "cut.png")))
    assert caught.value.exit_code == 1


def test_what_is_done_is_not_done_again_unless_the_image_is_newer(photos: Path) -> None:
    """Catches hours of work that are repeated after a kill, and a result that stays though its image changed."""
    run_upscale(config(photos))
    out = photos.parent / "larger"
    (out / "2024" / "may" / "two.png").unlink()  # as if the job had been killed before it
    (out / "one.png").write_bytes(b"kept")
    run_upscale(config(photos))
    assert written(photos)["one.png"] == b"kept"
    assert "2024/may/two.png" in written(photos)
    later = (out / "one.png").stat().st_mtime_ns + 10**9
    os.utime(photos / "one.png", ns=(later, later))
    run_upscale(config(photos))
    assert written(photos)["one.png"] != b"kept"


def test_results_of_other_settings_and_foreign_files_are_not_taken_for_finished(photos: Path) -> None:
    """Catches a folder in which two networks' results are mixed, and a user's own files that are overwritten."""
    out = photos.parent / "larger"
    out.mkdir()
    (out / "one.png").write_bytes(b"mine")
    Path(os.fsdecode(bytes(out) + b"/caf\xe9.txt")).touch()  # a name that is not UTF-8
    with pytest.raises(
        BadRequest, match=r"contains 1 of the files that would be written, such as one.png; give another"
    ):
        run_upscale(config(photos))
    assert written(photos)["one.png"] == b"mine"
    run_upscale(config(photos, overwrite=True))
    assert len(decode_png(written(photos)["one.png"])) == 40
    with pytest.raises(BadRequest, match=r"contains results of other settings \(scale\)"):
        run_upscale(config(photos, scale=3))
    run_upscale(config(photos, scale=3, overwrite=True))
    assert len(decode_png(written(photos)["one.png"])) == 60
    (out / "one.png").write_bytes(b"stale")
    run_upscale(config(photos, scale=3, overwrite=True))
    assert len(decode_png(written(photos)["one.png"])) == 60


def test_a_kill_amid_overwriting_leaves_nothing_that_counts_as_finished(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_upscale(config(photos))

    def killed(self: object, name: str, value: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("idc_ray.store.filesystem.StorageFolder.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        run_upscale(config(photos, scale=3, overwrite=True))
    monkeypatch.undo()
    run_upscale(config(photos, scale=3))
    assert len(decode_png(written(photos)["one.png"])) == 60


def test_the_scale_is_the_checkpoints(photos: Path, tmp_path: Path) -> None:
    """A student of this package, without --scale; with another one it is refused."""
    spec = ModelSpec("edsr", 3, {"channels": 4, "blocks": 1})
    save_checkpoint(tmp_path / "x3.safetensors", spec, spec.build().state_dict())
    run_upscale(config(photos, model=str(tmp_path / "x3.safetensors")))
    assert decode_png(written(photos)["one.png"]).shape == (60, 84, 3)
    assert json.loads(written(photos)["upscale.json"])["scale"] == 3
    with pytest.raises(BadRequest, match="use --scale 3"):
        run_upscale(config(photos, model=str(tmp_path / "x3.safetensors"), scale=2))


def test_large_images_go_through_in_tiles(photos: Path) -> None:
    """Equal to the whole but for rounding, as the overlap is wider than what the bundled network sees."""
    big = picture(150, 200)
    Pillow.fromarray(big).save(photos / "one.png")
    run_upscale(config(photos, model="bundled", tile=96, tile_overlap=48))
    whole = load_upscaler(bundled_teacher_bytes(2), scale=2).upscale_image(big)
    assert np.abs(decode_png(written(photos)["one.png"]).astype(int) - whole).max() <= 1


def test_alpha_depth_orientation_and_colour_profile(photos: Path) -> None:
    """The rules of reading; a profile of RGB is kept, one of grey is not: it fits no RGB pixels."""
    rgba = np.dstack([np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)])
    Pillow.fromarray(rgba).save(photos / "alpha.png")
    Pillow.fromarray(np.full((16, 16), 0x80FF, np.uint16)).save(photos / "deep.png")
    turned = Pillow.Exif()
    turned[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Pillow.fromarray(picture(16, 32)).save(photos / "phone.jpg", exif=turned, icc_profile=profile)
    grey = profile[:16] + b"GRAY" + profile[20:]
    Pillow.fromarray(picture(16, 16)[..., 0]).save(photos / "grey.png", icc_profile=grey)
    run_upscale(config(photos))
    files = written(photos)
    assert decode_png(files["alpha.png"]).min() == 255
    assert set(decode_png(files["deep.png"]).ravel()) == {0x80}
    assert decode_png(files["phone.png"]).shape == (64, 32, 3)
    assert Pillow.open(io.BytesIO(files["phone.png"])).info["icc_profile"] == profile
    assert "icc_profile" not in Pillow.open(io.BytesIO(files["grey.png"])).info


@pytest.mark.parametrize(("ending", "kind"), [("jpg", "JPEG"), ("webp", "WEBP")])
def test_formats(photos: Path, ending: str, kind: str) -> None:
    run_upscale(config(photos, format=ending))
    image = Pillow.open(io.BytesIO(written(photos)[f"one.{ending}"]))
    assert (image.format, image.size) == (kind, (56, 40))


def test_what_a_format_cannot_hold_is_reported(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Pillow.fromarray(np.zeros((1, 9000, 3), np.uint8)).save(photos / "wide.png")
    run_upscale(config(photos, format="webp"))
    assert "wide.png: too_large_result: 18000 x 2 pixels as WEBP" in capsys.readouterr().out


def test_names_that_differ_in_their_endings_only_keep_them() -> None:
    """Catches a result that silently replaces another one's."""
    assert output_names(["a.png", "b.png", "d/a.png"], "png") == ["a.png", "b.png", "d/a.png"]
    assert output_names(["a.png", "a.jpg", "b.png"], "png") == ["a.png.png", "a.jpg.png", "b.png"]
    with pytest.raises(BadRequest, match=r"a.jpg and a.jpg.bmp would both be a.jpg.png; rename one of the images"):
        output_names(["a.png", "a.jpg", "a.jpg.bmp"], "png")


def test_an_output_in_the_input_is_no_input_and_one_around_it_is_refused(photos: Path) -> None:
    """Catches results that are upscaled again by the next attempt, and photographs that are overwritten."""
    inside = photos / "larger"
    run_upscale(config(photos, output=str(inside)))
    run_upscale(config(photos, output=str(inside)))
    assert sorted(path.name for path in inside.rglob("*.png")) == ["one.png", "two.png"]
    for around in (photos, photos.parent):
        with pytest.raises(BadRequest, match="is or contains the input"):
            run_upscale(config(photos, output=str(around)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "no_such.pt"}, "no_such.pt cannot be read"),
        ({"model": "bundled", "tile": 32}, "--tile-overlap is 32; expected less than --tile 32"),
        ({"model": "bundled", "scale": 3}, "only for x2 and x4"),
        ({"model": "bundled", "device": "warp"}, "--device warp cannot be used"),
        ({"self_ensemble": True}, "--self-ensemble cannot be used with --model bicubic"),
        ({"input": "/nowhere"}, "does not exist"),
        ({"output": __file__}, "cannot write to output"),
    ],
)
def test_what_cannot_be_done_is_refused_first(photos: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        run_upscale(config(photos, **changed))
    assert not (photos.parent / "larger").exists()


def test_a_dry_run_estimates_and_writes_nothing(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(photos.parent.rglob("*"))
    assert run_upscale(config(photos, model="bundled", dry_run=True)) == 0
    told = capsys.readouterr().out
    assert "images          3 in " in told
    assert "0.00056 megapixels on average, 0.00224 when upscaled" in told
    assert "3 images, 1 of which cannot be read" in told
    assert sorted(photos.parent.rglob("*")) == before


def test_an_image_that_memory_does_not_suffice_for_is_reported(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(lr: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
        raise MemoryError

    monkeypatch.setattr(resize, "upscale", exhausted)
    with pytest.raises(IdcError):
        run_upscale(config(photos))
    assert "one.png: out_of_memory: not enough memory; use --tile 128" in capsys.readouterr().out


def test_in_an_object_store(photos: Path, s3: Any) -> None:
    """From a bucket and to one, and only what is missing the second time."""
    s3.client.create_bucket(Bucket="upscale")
    s3.put("upscale", "in/d/one.png", (photos / "one.png").read_bytes())
    s3.put("upscale", "in/two.png", (photos / "one.png").read_bytes())
    settings = {"input": s3.uri("upscale/in"), "output": s3.uri("upscale/in/larger")}
    run_upscale(config(photos, **settings))
    assert s3.keys("upscale", "in/larger/") == ["in/larger/d/one.png", "in/larger/two.png", "in/larger/upscale.json"]
    s3.client.delete_object(Bucket="upscale", Key="in/larger/two.png")
    with s3.counting() as requests:
        run_upscale(config(photos, **settings))
    changed = {request.name for request in requests if request.method in ("PUT", "POST")}
    assert {name for name in changed if name.endswith(".png")} == {"two.png"}
