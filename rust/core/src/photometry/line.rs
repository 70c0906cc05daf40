//! Straight lines between the samples of two inputs.

/// A lattice point of both inputs.
#[derive(Clone, Copy)]
pub struct Point {
    /// Number of its block.
    pub block: u64,
    /// Column.
    pub x: u32,
    /// Row.
    pub y: u32,
    /// Sample of the first input.
    pub a: f32,
    /// Sample of the second input.
    pub b: f32,
}

impl Point {
    fn place(&self) -> [f64; 2] {
        [self.x, self.y].map(f64::from)
    }
}

/// A line through the points of two inputs.
#[derive(Clone, Copy)]
pub struct Line {
    /// What is taken from both inputs before.
    pub plane: Plane,
    /// Change of the second input with the first.
    pub slope: f64,
    /// Points further from it, in the second input's units, do not count.
    pub reach: f64,
}

impl Line {
    /// A line to which all points are near.
    pub const ANY: Self = Self { plane: Plane::ZERO, slope: 0.0, reach: f64::INFINITY };

    /// Distance of a point.
    pub fn distance(&self, point: &Point) -> f64 {
        let [a, b] = self.plane.above(point);
        (b - self.slope * a).abs()
    }

    /// The points that count.
    pub fn near<'a>(&'a self, points: &'a [Point]) -> impl Iterator<Item = &'a Point> {
        points.iter().filter(|point| self.distance(point) <= self.reach)
    }
}

/// A plane for each of two inputs, over columns and rows of the lattice.
#[derive(Clone, Copy)]
pub struct Plane {
    origin: [f64; 2],
    /// Of each input: its value at the origin, and the slopes.
    of: [[f64; 3]; 2],
}

impl Plane {
    const ZERO: Self = Self { origin: [0.0; 2], of: [[0.0; 3]; 2] };

    /// Least squares through points; level across what they do not span.
    pub fn through<'a>(mut points: impl Iterator<Item = &'a Point>) -> Option<Self> {
        let first = *points.next()?;
        let (start, level) = (first.place(), [first.a, first.b].map(f64::from));
        // Columns and rows from the first point on, values above it; products of both.
        let (mut n, mut sum, mut product) = (1.0, [0.0; 4], [[0.0; 4]; 2]);
        for point in points {
            let [x, y] = point.place();
            let (x, y) = (x - start[0], y - start[1]);
            let all = [x, y, f64::from(point.a) - level[0], f64::from(point.b) - level[1]];
            n += 1.0;
            for (k, value) in all.into_iter().enumerate() {
                sum[k] += value;
                product[0][k] += x * value;
                product[1][k] += y * value;
            }
        }
        let mean = sum.map(|sum| sum / n);
        let spread = |k: usize, l: usize| product[k][l] / n - mean[k] * mean[l];
        let (xx, xy, yy) = (spread(0, 0), spread(0, 1), spread(1, 1));
        // Points are a unit apart: what is less is rounding.
        let tilt = if xx > 1e-3 { xy / xx } else { 0.0 };
        let across = yy - tilt * xy;
        let of = [0, 1].map(|input| {
            let along = if xx > 1e-3 { spread(0, 2 + input) / xx } else { 0.0 };
            let rest = spread(1, 2 + input) - tilt * spread(0, 2 + input);
            let slope = if across > 1e-3 { rest / across } else { 0.0 };
            [level[input] + mean[2 + input], along - slope * tilt, slope]
        });
        Some(Self { origin: [start[0] + mean[0], start[1] + mean[1]], of })
    }

    /// By how much both samples of a point are above their planes.
    pub fn above(&self, point: &Point) -> [f64; 2] {
        let [x, y] = point.place();
        let (x, y) = (x - self.origin[0], y - self.origin[1]);
        let at = |of: [f64; 3]| of[0] + of[1] * x + of[2] * y;
        [f64::from(point.a) - at(self.of[0]), f64::from(point.b) - at(self.of[1])]
    }
}

/// Products of the instrument with the inputs, each point's with that of its neighbours.
#[derive(Clone, Copy, Default)]
pub struct Sums {
    /// With the first input.
    pub za: f64,
    /// With the second input.
    pub zb: f64,
    /// The instrument squared.
    pub zz: f64,
    /// The first input squared.
    pub aa: f64,
    /// Variance of the first product, were the instrument independent of it.
    pub chance: f64,
    /// Number of points.
    pub n: f64,
}

impl Sums {
    /// Of one block. The instrument of a point is the mean of what its neighbours say, none of them
    /// more than `most`.
    pub fn of<'a>(points: impl Iterator<Item = &'a Point>, plane: &Plane, most: f64) -> Self {
        let (mut n, mut a, mut b, mut z) = (0.0, 0.0, 0.0, 0.0);
        // With itself.
        let (mut za, mut zb, mut zz, mut aa) = (0.0, 0.0, 0.0, 0.0);
        for point in points {
            let [of_a, of_b] = plane.above(point);
            let of_z = (of_a + of_b).clamp(-most, most);
            n += 1.0;
            (a, b, z) = (a + of_a, b + of_b, z + of_z);
            (za, zb, zz) = (za + of_z * of_a, zb + of_z * of_b, zz + of_z * of_z);
            aa += of_a * of_a;
        }
        if n < 2.0 {
            return Self::default();
        }
        let others = n - 1.0;
        let zz = ((n - 2.0) * z * z + zz) / (others * others);
        let chance = zz * aa / n;
        Self { za: (z * a - za) / others, zb: (z * b - zb) / others, zz, aa, chance, n }
    }

    /// Add those of another block.
    pub fn add(&mut self, more: &Self) {
        self.za += more.za;
        self.zb += more.zb;
        self.zz += more.zz;
        self.aa += more.aa;
        self.chance += more.chance;
        self.n += more.n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(x: u32, y: u32, a: f32, b: f32) -> Point {
        Point { block: 0, x, y, a, b }
    }

    #[test]
    fn planes_lie_on_what_is_plane() {
        let value = |x: u32, y: u32| 1000.0 + 3.0 * x as f32 - 0.5 * y as f32;
        let all: Vec<_> = (0..60)
            .map(|k| (k % 7 + 1000, 2 * k / 7 + 90_000))
            .map(|(x, y)| point(x, y, value(x, y), -value(x, y)))
            .collect();
        for few in [&all[..], &all[..7], &all[..1]] {
            let plane = Plane::through(few.iter()).unwrap();
            assert!(few.iter().flat_map(|p| plane.above(p)).all(|v| v.abs() < 1e-2));
        }
        let diagonal: Vec<_> = (0..9).map(|k| point(k, k, 2.0 * k as f32, 1.0)).collect();
        let plane = Plane::through(diagonal.iter()).unwrap();
        assert!(diagonal.iter().flat_map(|p| plane.above(p)).all(|v| v.abs() < 1e-9));
        assert!(Plane::through([].iter()).is_none());
    }

    #[test]
    fn sums_are_those_of_all_pairs_of_neighbours() {
        let points: Vec<_> =
            (0..5).map(|k| point(k, 0, (k * k) as f32, 7.0 - (3 * k) as f32)).collect();
        let plane = Plane::ZERO;
        let z = |p: &Point| f64::from(p.a + p.b).clamp(-6.0, 6.0);
        let mut wanted = Sums::default();
        for (k, one) in points.iter().enumerate() {
            let others = points.iter().enumerate().filter(|(l, _)| *l != k);
            let mean = others.map(|(_, p)| z(p)).sum::<f64>() / 4.0;
            wanted.za += mean * f64::from(one.a);
            wanted.zb += mean * f64::from(one.b);
            wanted.zz += mean * mean;
        }
        let got = Sums::of(points.iter(), &plane, 6.0);
        let off = [got.za - wanted.za, got.zb - wanted.zb, got.zz - wanted.zz];
        assert!(off.iter().all(|v| v.abs() < 1e-12), "{off:?}");
        assert_eq!(Sums::of(points[..1].iter(), &plane, 6.0).za, 0.0);
    }
}
