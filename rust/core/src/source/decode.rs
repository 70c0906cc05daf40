//! Stored samples → `f32`, NaN where invalid.

/// Type of a stored sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleType {
    /// Unsigned byte (BITPIX 8).
    U8,
    /// 16-bit integer (BITPIX 16).
    I16,
    /// 32-bit integer (BITPIX 32).
    I32,
    /// 64-bit integer (BITPIX 64).
    I64,
    /// Single precision (BITPIX −32).
    F32,
    /// Double precision (BITPIX −64).
    F64,
}

impl SampleType {
    /// The type that a FITS `BITPIX` names.
    pub fn from_bitpix(bitpix: i64) -> Option<Self> {
        Some(match bitpix {
            8 => Self::U8,
            16 => Self::I16,
            32 => Self::I32,
            64 => Self::I64,
            -32 => Self::F32,
            -64 => Self::F64,
            _ => return None,
        })
    }

    /// The FITS `BITPIX` that names it.
    pub fn bitpix(self) -> i64 {
        match self {
            Self::U8 => 8,
            Self::I16 => 16,
            Self::I32 => 32,
            Self::I64 => 64,
            Self::F32 => -32,
            Self::F64 => -64,
        }
    }

    /// Bytes of a sample.
    pub fn bytes(self) -> usize {
        self.bitpix().unsigned_abs() as usize / 8
    }
}

/// How stored samples become physical values: `zero + scale · stored` (FITS BZERO and BSCALE).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Encoding {
    /// Type of a sample.
    pub sample: SampleType,
    /// Byte order: big-endian as in FITS, or this machine's.
    pub big_endian: bool,
    /// BSCALE.
    pub scale: f64,
    /// BZERO.
    pub zero: f64,
    /// BLANK: the stored integer that means "invalid".
    pub blank: Option<i64>,
}

impl Encoding {
    /// The value of the greatest integer that can be stored; infinity for floating-point samples.
    pub fn greatest(&self) -> f32 {
        let stored = match self.sample {
            SampleType::U8 => f64::from(u8::MAX),
            SampleType::I16 => f64::from(i16::MAX),
            SampleType::I32 => f64::from(i32::MAX),
            SampleType::I64 => i64::MAX as f64,
            SampleType::F32 | SampleType::F64 => f64::INFINITY,
        };
        if self.scale > 0.0 { (self.zero + self.scale * stored) as f32 } else { f32::INFINITY }
    }
}

/// Decode `bytes` into `out`, sample for sample; what is not finite becomes NaN.
#[inline(always)]
pub fn decode(bytes: &[u8], encoding: &Encoding, out: &mut [f32]) {
    macro_rules! integers {
        ($t:ty) => {{
            let blank = encoding.blank.and_then(|b| <$t>::try_from(b).ok());
            convert::<{ size_of::<$t>() }>(bytes, encoding.big_endian, out, |raw| {
                let stored = <$t>::from_ne_bytes(raw);
                let value = finite((encoding.zero + encoding.scale * stored as f64) as f32);
                if Some(stored) == blank { f32::NAN } else { value }
            });
        }};
    }
    let plain = encoding.scale == 1.0 && encoding.zero == 0.0;
    match encoding.sample {
        SampleType::U8 => integers!(u8),
        SampleType::I16 => integers!(i16),
        SampleType::I32 => integers!(i32),
        SampleType::I64 => integers!(i64),
        SampleType::F32 if plain => {
            convert(bytes, encoding.big_endian, out, |raw| finite(f32::from_ne_bytes(raw)));
        }
        SampleType::F32 => convert(bytes, encoding.big_endian, out, |raw| {
            let stored = f64::from(f32::from_ne_bytes(raw));
            finite((encoding.zero + encoding.scale * stored) as f32)
        }),
        SampleType::F64 => convert(bytes, encoding.big_endian, out, |raw| {
            finite((encoding.zero + encoding.scale * f64::from_ne_bytes(raw)) as f32)
        }),
    }
}

/// Apply `value` to each group of `N` bytes, put into this machine's byte order first.
#[inline(always)]
fn convert<const N: usize>(
    bytes: &[u8],
    big_endian: bool,
    out: &mut [f32],
    value: impl Fn([u8; N]) -> f32,
) {
    let (groups, _) = bytes.as_chunks::<N>();
    if big_endian && cfg!(target_endian = "little") {
        for (group, target) in groups.iter().zip(out) {
            let mut raw = *group;
            raw.reverse();
            *target = value(raw);
        }
    } else {
        for (group, target) in groups.iter().zip(out) {
            *target = value(*group);
        }
    }
}

#[inline(always)]
fn finite(value: f32) -> f32 {
    if value.is_finite() { value } else { f32::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoding(sample: SampleType) -> Encoding {
        Encoding { sample, big_endian: true, scale: 1.0, zero: 0.0, blank: None }
    }

    #[test]
    fn unsigned_sixteen_bit_and_blank() {
        let stored: [i16; 4] = [-32768, 32767, 0, -7];
        let bytes: Vec<u8> = stored.iter().flat_map(|v| v.to_be_bytes()).collect();
        let rule = Encoding { zero: 32768.0, blank: Some(-7), ..encoding(SampleType::I16) };
        let mut out = [0.0; 4];
        decode(&bytes, &rule, &mut out);
        assert_eq!(out[..3], [0.0, 65535.0, 32768.0]);
        assert!(out[3].is_nan());
    }

    #[test]
    fn what_is_not_finite_is_invalid() {
        let stored = [1.5_f32, f32::INFINITY, f32::NAN, f32::NEG_INFINITY];
        let bytes: Vec<u8> = stored.iter().flat_map(|v| v.to_be_bytes()).collect();
        let mut out = [0.0; 4];
        decode(&bytes, &encoding(SampleType::F32), &mut out);
        assert_eq!(out[0], 1.5);
        assert!(out[1..].iter().all(|v| v.is_nan()));
        let bytes: Vec<u8> = [1e300_f64, -2.25].iter().flat_map(|v| v.to_be_bytes()).collect();
        decode(&bytes, &encoding(SampleType::F64), &mut out[..2]);
        assert!(out[0].is_nan() && out[1] == -2.25);
    }

    #[test]
    fn a_blank_beyond_the_type_blanks_nothing() {
        let rule = Encoding { blank: Some(300), ..encoding(SampleType::U8) };
        let mut out = [0.0; 2];
        decode(&[44, 255], &rule, &mut out);
        assert_eq!(out, [44.0, 255.0]);
    }

    #[test]
    fn every_width_in_both_byte_orders() {
        for big_endian in [true, false] {
            let order = |bytes: [u8; 8]| {
                if big_endian { bytes } else { u64::from_be_bytes(bytes).to_ne_bytes() }
            };
            let rule = Encoding { big_endian, ..encoding(SampleType::I64) };
            let mut out = [0.0];
            decode(&order((-123_456_i64).to_be_bytes()), &rule, &mut out);
            assert_eq!(out, [-123_456.0]);
        }
        let mut out = [0.0];
        decode(&(-9_i32).to_be_bytes(), &encoding(SampleType::I32), &mut out);
        assert_eq!(out, [-9.0]);
    }
}
