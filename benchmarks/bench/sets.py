"""The simulated sets of frames."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

CENTER = (150.0, 30.0)
OVERLAP = 0.3
TURN_DEG = 3.0


@dataclass(frozen=True)
class Tiles:
    """Square frames of float32 in rows and columns, overlap 30 %, turned by up to 3 degrees.

    Attributes
    ----------
    side
        Frames in a row, and in a column.
    edge
        Pixels in a row of a frame, and in a column.
    channels
        1 or 3.
    scale_arcsec
        Size of a pixel.
    """

    side: int
    edge: int
    channels: int = 1
    scale_arcsec: float = 1.0

    @property
    def words(self) -> str:
        """In words."""
        colour = " RGB" if self.channels == 3 else ""
        return f"{self.side**2} frames of {self.edge} x {self.edge} float32{colour}"

    def smaller(self, times: int) -> Tiles:
        """The same field in coarser pixels."""
        return Tiles(self.side, self.edge // times, self.channels, self.scale_arcsec * times)

    def make(self, work: Path) -> Path:
        """The folder of the frames, which are simulated once and kept."""
        folder = work / f"{self.side**2}_of_{self.edge}_{self.channels}_{self.scale_arcsec:g}"
        done = folder / "complete"
        if not done.exists():
            from zmrs import simulate

            shutil.rmtree(folder, ignore_errors=True)
            shape = (self.edge, self.edge)
            wcs = simulate.dither_pattern(
                (self.side, self.side), shape, self.scale_arcsec,
                center_deg=CENTER, overlap=OVERLAP, max_rotation_deg=TURN_DEG, seed=5,
            )  # fmt: skip
            sky = simulate.Sky.random(
                3, center_deg=CENTER, radius_deg=1.8, n_stars=6000, nebula_peak=0.0
            )
            more = {"noise_sigma": 10.0, "sky_level": 1000.0, "channels": self.channels}
            specs = [simulate.FrameSpec(w, shape, **more) for w in wcs]
            simulate.write_frames(folder, sky, specs, seed=1, truth=False)
            done.touch()
        return folder


@dataclass(frozen=True)
class Exposures:
    """Frames of one field as a small telescope takes them: float32, a few pixels apart, turned by
    up to 3 degrees, with satellites, hot pixels and cosmic rays.

    Attributes
    ----------
    number
        Of frames.
    shape
        (H, W) of each.
    """

    number: int
    shape: tuple[int, int]

    @property
    def words(self) -> str:
        """In words."""
        return f"{self.number} frames of {self.shape[1]} x {self.shape[0]} float32 of one field"

    def smaller(self, times: int) -> Exposures:
        """The same in coarser pixels."""
        return Exposures(self.number, (self.shape[0] // times, self.shape[1] // times))

    def make(self, work: Path) -> Path:
        """The folder of the frames, which are simulated once and kept."""
        folder = work / f"{self.number}_exposures_{self.shape[1]}x{self.shape[0]}"
        done = folder / "complete"
        if not done.exists():
            import numpy as np

            from zmrs import simulate

            shutil.rmtree(folder, ignore_errors=True)
            rng = np.random.default_rng(7)
            sky = simulate.Sky.random(4, center_deg=CENTER, radius_deg=0.8, n_stars=3000)
            light = simulate.Contaminants(satellites=0.3, hot=1e-4, cosmic_rays=50.0)
            specs = []
            for turn in rng.uniform(-TURN_DEG, TURN_DEG, self.number):
                wcs = simulate.make_frame_wcs(CENTER, 2.0, turn, self.shape)
                wcs.wcs.crpix += rng.uniform(-20.0, 20.0, 2)
                specs.append(
                    simulate.FrameSpec(
                        wcs, self.shape, noise_sigma=10.0, sky_level=1000.0, contaminants=light
                    )
                )
            simulate.write_frames(folder, sky, specs, seed=2, truth=False)
            done.touch()
        return folder


@dataclass(frozen=True)
class Subs:
    """Subs of 10 s as a smart telescope takes them of some fields, one field after the other.

    They are uint16 of 1080 x 1920, overlap 30 %, some pixels apart, turned by up to 3 degrees, with
    satellites, hot pixels and cosmic rays; each with a sky level and a transparency of its own.

    Attributes
    ----------
    number
        Of subs; a multiple of the number of fields.
    fields
        Rows and columns of fields.
    shape
        (H, W) of each sub.
    """

    number: int
    fields: tuple[int, int] = (2, 2)
    shape: tuple[int, int] = (1920, 1080)

    @property
    def words(self) -> str:
        """In words."""
        size, (down, across) = f"{self.shape[1]} x {self.shape[0]}", self.fields
        return f"{self.number} subs of {size} uint16, {down} x {across} fields"

    def make(self, work: Path) -> Path:
        """The folder of the subs, which are simulated once and kept."""
        size, (down, across) = f"{self.shape[1]}x{self.shape[0]}", self.fields
        folder = work / f"{self.number}_subs_{size}_of_{down}x{across}"
        done = folder / "complete"
        if not done.exists():
            import numpy as np

            from zmrs import simulate

            shutil.rmtree(folder, ignore_errors=True)
            rng = np.random.default_rng(17)
            # Without nebulae, which take most of the time.
            sky = simulate.Sky.random(
                5, center_deg=CENTER, radius_deg=1.6, n_stars=4000, nebula_peak=0.0
            )
            fields = simulate.dither_pattern(
                self.fields, self.shape, 2.37, center_deg=CENTER, overlap=OVERLAP,
                max_rotation_deg=0.0,
            )  # fmt: skip
            light = simulate.Contaminants(satellites=0.1, hot=1e-4, cosmic_rays=20.0)
            specs = []
            for number in range(self.number):
                field = fields[len(fields) * number // self.number]
                turn = rng.uniform(-TURN_DEG, TURN_DEG)
                wcs = simulate.make_frame_wcs(tuple(field.wcs.crval), 2.37, turn, self.shape)
                wcs.wcs.crpix += rng.uniform(-15.0, 15.0, 2)
                specs.append(
                    simulate.FrameSpec(
                        wcs, self.shape, noise_sigma=20.0, sky_level=rng.uniform(800.0, 1200.0),
                        gain=rng.uniform(0.9, 1.0), exptime_s=10.0, contaminants=light,
                    )
                )  # fmt: skip
            simulate.write_frames(folder, sky, specs, bitpix=16, seed=6, truth=False)
            done.touch()
        return folder


TILES = Tiles(6, 2048)
COLOUR = Tiles(4, 1024, channels=3)
SUBS = Subs(2000)
DEEP = Subs(1000, (1, 1))
LARGE = Tiles(6, 4096, scale_arcsec=0.5)
"""The field of `TILES` on four times the canvas."""
THIRTY = Exposures(30, (2822, 4144))
