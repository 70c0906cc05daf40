//! Interpolation kernels: positions in a plane of pixels → sample values.
//!
//! A kernel gets slices and gives slices; it allocates nothing and knows no file, thread or
//! budget. A sample that touches an invalid pixel (NaN) comes out NaN from the quick loop and is
//! then looked at again, one by one: outer taps that are invalid are dropped and the rest
//! renormalised, while an invalid pixel among the inner four (those with a tap above
//! [`LEAST_TAP`]) makes the sample invalid.

mod bilinear;
mod nearest;
mod separable;

pub use separable::TapTable;
pub(crate) use separable::first_tap;

/// Taps up to this size do not decide whether a sample is valid.
pub const LEAST_TAP: f32 = 1e-6;

/// Most samples in a run.
pub const RUN: usize = 64;

/// The interpolation kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The pixel that the position falls into.
    Nearest,
    /// Linear in both directions.
    Bilinear,
    /// Keys' cubic convolution with a = −0.5 (Keys 1981, IEEE ASSP 29, 1153).
    Bicubic,
    /// sinc(x) · sinc(x/2), normalised.
    Lanczos2,
    /// sinc(x) · sinc(x/3), normalised.
    Lanczos3,
}

impl Kernel {
    /// The kernel of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "nearest" => Self::Nearest,
            "bilinear" => Self::Bilinear,
            "bicubic" => Self::Bicubic,
            "lanczos2" => Self::Lanczos2,
            "lanczos3" => Self::Lanczos3,
            _ => return None,
        })
    }

    /// Taps on each side of a position.
    pub fn radius(self) -> usize {
        match self {
            Self::Nearest | Self::Bilinear => 1,
            Self::Bicubic | Self::Lanczos2 => 2,
            Self::Lanczos3 => 3,
        }
    }
}

/// Positions of [`RUN`] samples in a plane, of which the first `len` are meant; the others may lie
/// anywhere in it: the pixel at or before each in both directions,
/// as an index into the plane, and how far past that pixel's centre it lies, in [0, 1]. A position
/// outside the frame has NaN as its horizontal fraction.
pub struct Run {
    /// Number of positions in use.
    pub len: usize,
    /// Index of the pixel.
    pub index: [u32; RUN],
    /// Fraction along the row.
    pub fx: [f32; RUN],
    /// Fraction along the column.
    pub fy: [f32; RUN],
}

impl Default for Run {
    fn default() -> Self {
        Self { len: 0, index: [0; RUN], fx: [0.0; RUN], fy: [0.0; RUN] }
    }
}

/// Pixels in rows of `stride`, NaN where invalid. Around every pixel that a run names there are
/// `radius` more in each direction, and [`SLACK`] values follow the last row.
#[derive(Clone, Copy)]
pub struct Plane<'a> {
    /// The pixels.
    pub pixels: &'a [f32],
    /// Distance between rows.
    pub stride: usize,
}

/// Values that must follow the last row of a plane, because rows of taps are read eight at a time.
pub const SLACK: usize = 8;

/// Sample `plane` at the positions of `run`; NaN where invalid. Whether some of the samples may be
/// from fewer taps that have weight than the kernel has.
#[inline(always)]
pub fn sample(
    kernel: Kernel,
    table: &TapTable,
    plane: Plane,
    run: &Run,
    out: &mut [f32; RUN],
) -> bool {
    match kernel {
        Kernel::Nearest => {
            nearest::sample(plane, run, out);
            false
        }
        Kernel::Bilinear => {
            bilinear::sample(plane, run, out);
            false
        }
        Kernel::Bicubic | Kernel::Lanczos2 => separable::sample::<4>(table, plane, run, out),
        Kernel::Lanczos3 => separable::sample::<6>(table, plane, run, out),
    }
}
