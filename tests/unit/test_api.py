"""The Python interface takes what it promises, and refuses the rest with one sentence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData, NDData

import sky
import zmrs
from sky import unmatched
from zmrs.errors import BudgetError, InputError, UsageError
from zmrs.simulate import make_frame_wcs

SHAPE = (40, 50)


@pytest.fixture
def wcs() -> Any:
    return sky.frame_wcs(SHAPE)


@pytest.fixture
def image() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).normal(100.0, 5.0, SHAPE).astype(np.float32)


def test_every_kind_of_input_gives_the_same_mosaic(tmp_path: Path, image: Any, wcs: Any) -> None:
    path = sky.write_image(tmp_path / "a.fits", image, wcs)
    with fits.open(path, memmap=False) as hdus:
        hdu = hdus[0].copy()
    kinds = [
        path,
        str(path),
        hdu,
        (image, wcs),
        (image[None], wcs),
        NDData(image, wcs=wcs),
        CCDData(image, wcs=wcs, unit="adu"),
    ]
    wanted = unmatched([(image, wcs)], wcs=wcs, shape=SHAPE).data
    for kind in kinds:
        got = unmatched([kind], wcs=wcs, shape=SHAPE)
        np.testing.assert_array_equal(got.data, wanted, err_msg=str(type(kind)))
    np.testing.assert_array_equal(wanted, image)


def test_a_distorted_colour_hdu_is_read_as_its_file_is(tmp_path: Path, wcs: Any) -> None:
    bent = make_frame_wcs(sky.CENTER_DEG, 2.0, 10.0, SHAPE, sip_strength=2.0)
    header = bent.to_header(relax=True)
    header["EXPTIME"], header["FILTER"] = "10.0", "R"
    cube = np.random.default_rng(3).random((3, *SHAPE), np.float32)
    hdu = fits.PrimaryHDU(cube, header)
    hdu.writeto(tmp_path / "cube.fits")
    from_hdu = unmatched([hdu])
    from_file = unmatched([tmp_path / "cube.fits"])
    assert from_hdu.data.tobytes() == from_file.data.tobytes()
    assert from_hdu.inputs[0].exposure_s == from_file.inputs[0].exposure_s


def test_masks_of_nddata_and_masked_arrays_add_up(image: Any, wcs: Any) -> None:
    hidden = np.zeros(SHAPE, bool)
    hidden[3, 4] = True
    masked = np.ma.masked_array(image.astype(np.int16), hidden)
    result = unmatched([(masked, wcs)], wcs=wcs, shape=SHAPE)
    np.testing.assert_array_equal(np.isnan(result.data), hidden)


def test_weights_belong_to_the_inputs_as_given(tmp_path: Path, image: Any, wcs: Any) -> None:
    good = [sky.write_image(tmp_path / f"{k}.fits", image, wcs) for k in range(2)]
    bad = tmp_path / "bad.fits"
    bad.write_bytes(b"no fits")
    for weights in ([1, 7, 3], np.array([1.0, 7.0, 3.0]), iter([1, 7, 3])):
        result = unmatched([good[0], bad, good[1]], weights=weights)
        assert result.coverage.max() == 4.0
    with pytest.raises(UsageError, match="2 weights were given for 3 inputs"):
        unmatched([good[0], bad, good[1]], weights=[1, 2])
    for weight in (0, -1, float("nan"), 1e-60):
        with pytest.raises(InputError, match="its weight is"):
            unmatched([good[0]], weights=[weight])


def test_grids_come_as_wcs_header_or_template(tmp_path: Path, image: Any, wcs: Any) -> None:
    template = sky.write_image(tmp_path / "grid.fits", np.zeros((30, 30), np.float32), wcs)
    shapes = [
        unmatched([(image, wcs)], wcs=wcs, shape=(30, 30)).data,
        unmatched([(image, wcs)], wcs=wcs.to_header(), shape=(30, 30)).data,
        unmatched([(image, wcs)], wcs=template).data,
        unmatched([(image, wcs)], wcs=str(template)).data,
    ]
    for data in shapes:
        np.testing.assert_array_equal(data, image[:30, :30])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wcs": 7}, "wcs: a int is no WCS"),
        ({"shape": (3, 3)}, "shape: it needs the output WCS"),
        ({"wcs": "wcs", "shape": (0, 3)}, "shape: the output WCS needs"),
        ({"wcs": "wcs"}, "shape: the output WCS needs"),
        ({"memory": True}, "memory: True"),
        ({"memory": 0}, "memory: 0"),
        ({"memory": float("nan")}, "memory: nan"),
        ({"memory": "300"}, "lacks a unit"),
        ({"threads": 0}, "threads: 0"),
        ({"kernel": "cubic"}, "kernel: 'cubic'"),
        ({"combine": "mode"}, "combine: 'mode'"),
        ({"kappa": 0}, "--kappa: 0 cannot work; give one or two numbers above 0"),
        ({"kappa": (2.0, math.inf)}, "--kappa: 2,inf cannot work"),
        ({"kappa": (math.nan, 2.0)}, "--kappa: nan,2 cannot work"),
        ({"kappa": ("2", "3")}, "--kappa: 2,3 cannot work"),
        ({"kappa": (True, True)}, "--kappa: True,True cannot work"),
        ({"kappa": [1, 2, 3]}, r"--kappa: \[1, 2, 3\] cannot work"),
        ({"kappa": None}, "--kappa: None cannot work"),
        ({"winsor": (0.5, 0.5)}, "--winsor: 0.5,0.5 cannot work"),
        ({"winsor": 0.1}, "--winsor: 0.1 cannot work"),
        ({"two_pass_gain_clip": 1.0}, "--two-pass-gain-clip: 1 are no gains"),
        ({"reject_together": 1}, "reject_together: 1 is neither True nor False"),
    ],
)
def test_nonsense_is_refused_by_name(image: Any, wcs: Any, options: Any, message: str) -> None:
    if options.get("wcs") == "wcs":
        options = options | {"wcs": wcs}
    with pytest.raises(UsageError, match=message):
        unmatched([(image, wcs)], **options)


@pytest.mark.parametrize("kappa", [2, 2.0, (2,), "2", "2,2", [2, 2], np.array([2.0, 2.0])])
def test_kappas_come_in_many_forms(image: Any, wcs: Any, kappa: Any) -> None:
    noise = np.random.default_rng(3).normal(size=(9, *SHAPE))
    frames = [((image + one).astype(np.float32), wcs) for one in noise]
    given = {"wcs": wcs, "shape": SHAPE, "combine": "kappa-sigma"}
    want = unmatched(frames, kappa=(2.0, 2.0), **given)
    assert (want.rejected_high > 0).any()
    np.testing.assert_array_equal(unmatched(frames, kappa=kappa, **given).data, want.data)


def test_a_refusal_names_a_limit_that_works_in_the_callers_terms(image: Any, wcs: Any) -> None:
    with pytest.raises(BudgetError) as refusal:
        unmatched([(image, wcs)], memory=2_000_000)
    least = str(refusal.value).rsplit("--memory ", 1)[1]
    # Between the two calls the process itself may have grown a little.
    enough = f"{int(least.removesuffix('MiB.')) + 2}MiB"
    assert unmatched([(image, wcs)], memory=enough).data.shape == SHAPE
    with pytest.raises(BudgetError, match="max_chunk_bytes of 1000 bytes is too small"):
        unmatched([(image, wcs)], plan={"max_chunk_bytes": 1000})


def test_hdu_may_be_a_number(tmp_path: Path, image: Any, wcs: Any) -> None:
    path = sky.write_image(tmp_path / "a.fits", image, wcs)
    assert unmatched([path], hdu=0).data.shape == SHAPE


def test_a_damaged_compressed_file_is_left_out(tmp_path: Path, wcs: Any) -> None:
    noise = np.random.default_rng(2).integers(0, 30_000, SHAPE).astype(np.int16)
    good = sky.write_image(tmp_path / "good.fits", noise.astype(np.float32), wcs)
    bad = tmp_path / "bad.fits.fz"
    header = wcs.to_header()
    fits.CompImageHDU(noise, header, compression_type="GZIP_1").writeto(bad)
    whole = unmatched([bad], wcs=wcs, shape=SHAPE)
    np.testing.assert_array_equal(whole.data, noise)
    content = bytearray(bad.read_bytes())
    content[-2880:] = b"\xff" * 2880
    bad.write_bytes(content)
    result = unmatched([good, bad], wcs=wcs, shape=SHAPE)
    assert [row.status for row in result.inputs] == ["used", "left_out"]
    assert "cannot be decompressed" in result.inputs[1].reason
    assert result.coverage.max() == 1.0
    with pytest.raises(InputError, match="cannot be decompressed"):
        unmatched([good, bad], strict=True)


@pytest.mark.parametrize("option", ["feather", "border_mask", "two_pass_sigma"])
@pytest.mark.parametrize("value", [None, "much", True, (1, 2), [1.0]])
def test_what_is_no_number_is_refused_in_words(option: str, value: object) -> None:
    with pytest.raises(UsageError, match=option.replace("_", "[-_]")):
        unmatched([np.ones((5, 5))], **{option: value})


def test_updates_check_their_arguments(tmp_path: Path, image: Any, wcs: Any) -> None:
    out = tmp_path / "out.fits"
    unmatched([(image, wcs)], out, wcs=wcs, shape=SHAPE)
    before = out.read_bytes()
    for more, says in (
        ({"kernel": "cubic"}, "'cubic' is not one of nearest"),
        ({"match": "all"}, "'all' is not one of none"),
        ({"combine": "median"}, "--combine median: an update is a plain mean"),
        ({"wcs": "a.fits"}, "--wcs a.fits"),
        ({"shape": (3, 3)}, "zmrs has no such option"),
        ({"weight_by": "ivar"}, "weighed by none"),
        ({"weights": [1.0, 2.0]}, "2 weights were given for 1 inputs"),
        ({"threads": 0}, "threads: 0 cannot work"),
        ({"plan": "large"}, "plan: 'large' is no plan"),
    ):
        with pytest.raises(UsageError, match=says):
            zmrs.update(out, [(image, wcs)], **more)
    with pytest.raises(FileNotFoundError):
        zmrs.update(tmp_path / "none.fits", [(image, wcs)])
    assert out.read_bytes() == before
    result = zmrs.update(str(out), [(image, wcs)], match="none", memory="200MiB")
    assert result.path == out.resolve()
    assert result.coverage.max() == 2.0
    np.testing.assert_array_equal(result.data, unmatched([out]).data)
