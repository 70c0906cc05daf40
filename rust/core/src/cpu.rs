//! The one place that chooses an instruction set.
//!
//! Each function here is a plain one compiled several times. Neither fused multiply-add nor
//! reassociation is allowed anywhere, so every variant gives the same bits.

use std::sync::OnceLock;

use crate::source::Encoding;

/// Instruction sets that the hot loops are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// What every processor of the platform has.
    Baseline,
    /// x86-64 with AVX2.
    Avx2,
    /// x86-64 with AVX-512 (F, BW, DQ, VL).
    Avx512,
}

/// The best level of this processor, or the lower one named by the environment variable
/// `ZMRS_SIMD` (`baseline`, `avx2`), which exists for tests and timings.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let found = detect();
        match std::env::var("ZMRS_SIMD").as_deref() {
            Ok("baseline") => Level::Baseline,
            Ok("avx2") if found == Level::Avx512 => Level::Avx2,
            _ => found,
        }
    })
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let wide = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    if wide {
        Level::Avx512
    } else if is_x86_feature_detected!("avx2") {
        Level::Avx2
    } else {
        Level::Baseline
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Baseline
}

/// Define a function that runs `$body`, compiled for the level of this processor.
macro_rules! dispatched {
    ($(#[$doc:meta])* $see:vis fn $name:ident($($arg:ident: $t:ty),* $(,)?) = $body:path) => {
        $(#[$doc])*
        $see fn $name($($arg: $t),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $t),*) {
                    $body($($arg),*);
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $t),*) {
                    $body($($arg),*);
                }
                match $crate::cpu::level() {
                    // SAFETY: the level says that the processor has these features.
                    $crate::cpu::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::cpu::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::cpu::Level::Baseline => {}
                }
            }
            $body($($arg),*);
        }
    };
}
pub(crate) use dispatched;

dispatched! {
    /// [`crate::source::decode`] with the best instructions.
    pub fn decode(bytes: &[u8], encoding: &Encoding, out: &mut [f32]) = crate::source::decode
}

dispatched! {
    /// [`crate::source::mix_colours`] with the best instructions.
    pub fn mix_colours(
        lines: [&[f32]; 3],
        is_own: bool,
        saturation: f32,
        own: &mut [f32],
        green: &mut [f32],
        other: &mut [f32],
    ) = crate::source::mix_colours
}

dispatched! {
    /// Bring values into the byte order of FITS, with the best instructions.
    pub fn encode(values: &mut [f32]) = crate::sink::to_big_endian
}
