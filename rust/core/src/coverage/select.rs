//! Exact order statistics of more values than there is memory for: counts of the leading bits say
//! where the wanted value lies, counts of the trailing bits among those say which it is.

/// A whole number in the order of the values: smaller floats have smaller keys.
#[inline(always)]
pub fn key(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// The value of a key.
#[inline(always)]
pub fn value(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

/// The bin that holds the value of rank `rank` (from 0), and how many values lie before that bin.
pub fn locate(counts: impl IntoIterator<Item = u64>, rank: u64) -> (usize, u64) {
    let mut before = 0;
    for (bin, count) in counts.into_iter().enumerate() {
        if rank < before + count {
            return (bin, before);
        }
        before += count;
    }
    unreachable!("a rank is below the number of values")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_order_of_the_values() {
        let values = [f32::NEG_INFINITY, -3.5, -1e-40, -0.0, 0.0, 1e-40, 0.5, 2.0, f32::INFINITY];
        for pair in values.windows(2) {
            assert!(key(pair[0]) < key(pair[1]));
        }
        for v in values {
            assert_eq!(value(key(v)).to_bits(), v.to_bits());
        }
    }

    #[test]
    fn ranks_are_located() {
        let counts = [0, 3, 0, 2];
        assert_eq!([0, 2, 3, 4].map(|rank| locate(counts, rank)), [(1, 0), (1, 0), (3, 3), (3, 3)]);
    }
}
