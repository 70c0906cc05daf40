//! Which points of the lattice are each other's neighbours.

use super::sampling::Sampled;

/// Points nearer to each other than so many pixels of an input may share a star, or noise. Stars
/// with a full width of 8 pixels at half of their height agree to a twentieth with themselves so far
/// away.
const APART_PX: f64 = 12.0;

/// No two points of a block are further apart than so many lattice points, in columns or rows: where
/// pixels are so large, there is nothing to compare.
const MOST_APART: f64 = 256.0;

/// With fewer points than these a block has two by two of them, with more four by four.
const MANY_POINTS: usize = 1024;

/// Which points are each other's neighbours.
#[derive(Clone, Copy)]
pub struct Blocks {
    /// Distance of those that are nearest, in columns or rows.
    pub apart: u32,
    /// How many of them are in a row, as a power of two.
    pub shift: u32,
}

impl Blocks {
    /// For two inputs with `n` common points.
    pub fn of(a: &Sampled, b: &Sampled, n: usize) -> Self {
        let apart = (APART_PX / a.step_px.min(b.step_px)).ceil().clamp(1.0, MOST_APART) as u32;
        Self { apart, shift: if n < MANY_POINTS { 1 } else { 2 } }
    }

    /// Column and row of the squares that hold blocks: as many as a square can hold without any two
    /// points of one being too near.
    fn square(self, x: u32, y: u32) -> [u32; 2] {
        [x, y].map(|v| (v / self.apart) >> self.shift)
    }

    /// Whether a point is among those that are looked at.
    pub fn is_chosen(self, x: u32, y: u32, every: u32) -> bool {
        self.square(x, y).iter().sum::<u32>().is_multiple_of(every)
    }

    /// Number of the block of a point. Blocks that follow each other lie together.
    pub fn number(self, x: u32, y: u32) -> u64 {
        let [column, row] = self.square(x, y);
        let square = spread_out(column) | spread_out(row) << 1;
        let apart = u64::from(self.apart);
        let within = u64::from(y % self.apart) * apart + u64::from(x % self.apart);
        square * apart * apart + within
    }
}

/// The bits of a number, with a gap after each.
fn spread_out(number: u32) -> u64 {
    let mut bits = u64::from(number);
    for (shift, mask) in [
        (16, 0x0000_FFFF_0000_FFFF),
        (8, 0x00FF_00FF_00FF_00FF),
        (4, 0x0F0F_0F0F_0F0F_0F0F),
        (2, 0x3333_3333_3333_3333),
        (1, 0x5555_5555_5555_5555),
    ] {
        bits = (bits | bits << shift) & mask;
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_of_a_block_are_apart_but_not_far() {
        let rule = Blocks { apart: 3, shift: 2 };
        let all = (0..50).flat_map(|y| (0..70).map(move |x| (x, y)));
        let mut numbered: Vec<_> = all.map(|(x, y)| (rule.number(x, y), x, y)).collect();
        numbered.sort_unstable();
        for block in numbered.chunk_by(|p, q| p.0 == q.0) {
            assert!(block.len() <= 16);
            for (p, q) in block.iter().flat_map(|p| block.iter().map(move |q| (p, q))) {
                let off = [p.1.abs_diff(q.1), p.2.abs_diff(q.2)];
                assert!(off.iter().all(|d| d.is_multiple_of(3) && *d < 12));
            }
        }
        // Six squares across, four down, and one of which only two rows are there.
        let blocks = numbered.chunk_by(|p, q| p.0 == q.0).count();
        assert_eq!(blocks, 6 * 3 * (4 * 3 + 2));
        assert_eq!(spread_out(0b1011), 0b0100_0101);
        assert_eq!(spread_out(u32::MAX), 0x5555_5555_5555_5555);
    }
}
