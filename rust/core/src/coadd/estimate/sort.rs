//! Sorting many short columns side by side.

use super::{LANES, Lanes};

/// Sort the rows of `rows` in each lane by itself, the least first; there must be no NaN.
///
/// Batcher's odd-even merge sort (Batcher 1968, AFIPS 32, 307), in the form for any length: which
/// rows are compared does not depend on the values, so all lanes take the same way.
#[inline(always)]
pub fn sort(rows: &mut [Lanes]) {
    let n = rows.len();
    let mut run = 1;
    while run < n {
        let mut step = run;
        while step > 0 {
            let mut first = step % run;
            while first + step < n {
                for low in first..(first + step).min(n - step) {
                    // Only within what this round merges.
                    if low / (2 * run) == (low + step) / (2 * run) {
                        exchange(rows, low, low + step);
                    }
                }
                first += 2 * step;
            }
            step /= 2;
        }
        run *= 2;
    }
}

#[inline(always)]
fn exchange(rows: &mut [Lanes], low: usize, high: usize) {
    let (a, b) = (rows[low], rows[high]);
    for lane in 0..LANES {
        rows[low][lane] = if b[lane] < a[lane] { b[lane] } else { a[lane] };
        rows[high][lane] = if b[lane] < a[lane] { a[lane] } else { b[lane] };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_any_length_are_sorted() {
        let mut state = 7_u32;
        for n in (0..70).chain([300, 1001]) {
            let mut rows: Vec<Lanes> = (0..n)
                .map(|_| {
                    std::array::from_fn(|_| {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        f32::from((state >> 20) as u16) - 700.0
                    })
                })
                .collect();
            let want = [0, LANES - 1].map(|lane| {
                let mut column: Vec<f32> = rows.iter().map(|row| row[lane]).collect();
                column.sort_by(f32::total_cmp);
                column
            });
            sort(&mut rows);
            for (lane, want) in [0, LANES - 1].into_iter().zip(want) {
                let got: Vec<f32> = rows.iter().map(|row| row[lane]).collect();
                assert_eq!(got, want, "{n} rows");
            }
        }
    }
}
