//! The two principal components of many vectors, exactly, in one pass of bounded memory.
//!
//! The covariance (H x H) is summed over blocks of rows, around the first row so that large means
//! cost no digits. Its leading eigenvectors come from orthogonal iteration with a Rayleigh-Ritz
//! step (Golub and Van Loan, *Matrix Computations*, 8.2.4), which needs a few products with the
//! matrix instead of the whole spectrum. No random start: the same rows give the same axes.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut1, Axis, Zip, s};
use rayon::prelude::*;

/// Number of vectors iterated together. With more than the two that are needed, convergence depends
/// on the gap to the ninth eigenvalue instead of the third.
const WIDTH: usize = 8;
/// An axis may still turn by this much (radians, about) when the iteration stops.
const TOLERANCE: f64 = 1e-9;
/// Rounds at most: by then the axes within the plane that has not settled are as good as each
/// other.
const ROUNDS: usize = 1000;
/// Rows of the covariance that a thread sums at a time.
const PANEL: usize = 64;

/// Mean and covariance of rows that are given block by block.
pub struct Moments {
    rows: u64,
    /// The first row: sums are of differences to it.
    origin: Option<Array1<f64>>,
    sum: Array1<f64>,
    /// Sums of products; only the upper triangle is kept.
    products: Array2<f64>,
}

/// A plane through the mean of the rows, spanned by their two principal components.
#[derive(Debug, Clone, PartialEq)]
pub struct Projection {
    /// The mean of the rows (H).
    pub mean: Vec<f64>,
    /// The components' directions, unit vectors of H values; all zero where rows don't vary. Each
    /// one's sign is such that its largest coordinate is positive.
    pub axes: [Vec<f64>; 2],
    /// Each component's share of the whole variance, 0 to 1.
    pub explained: [f64; 2],
}

impl Moments {
    /// No rows yet, of `hidden` values each.
    #[must_use]
    pub fn new(hidden: usize) -> Self {
        Moments {
            rows: 0,
            origin: None,
            sum: Array1::zeros(hidden),
            products: Array2::zeros((hidden, hidden)),
        }
    }

    /// How many rows were added.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Adds rows (N x H), which must be finite.
    ///
    /// # Panics
    /// If the rows do not have the number of dimensions given to [`Moments::new`].
    pub fn add(&mut self, rows: &ArrayView2<f32>) {
        if rows.is_empty() {
            return;
        }
        let rows = rows.mapv(f64::from);
        let origin = self.origin.get_or_insert_with(|| rows.row(0).to_owned());
        let rows = rows - &*origin;
        self.rows += rows.nrows() as u64;
        self.sum += &rows.sum_axis(Axis(0));
        let columns = rows.t();
        let panels: Vec<_> = self
            .products
            .axis_chunks_iter_mut(Axis(0), PANEL)
            .enumerate()
            .collect();
        panels.into_par_iter().for_each(|(panel, mut products)| {
            let from = panel * PANEL;
            let to = from + products.nrows();
            general_mat_mul(
                1.0,
                &columns.slice(s![from..to, ..]),
                &rows.slice(s![.., from..]),
                1.0,
                &mut products.slice_mut(s![.., from..]),
            );
        });
    }

    /// The principal plane of all rows.
    #[must_use]
    pub fn projection(self) -> Projection {
        let hidden = self.sum.len();
        let count = self.rows.max(1) as f64;
        let shift = self.sum / count;
        let mut covariance = self.products / count;
        for i in 0..hidden {
            for j in i..hidden {
                let value = covariance[(i, j)] - shift[i] * shift[j];
                covariance[(i, j)] = value;
                covariance[(j, i)] = value;
            }
        }
        let mean = match self.origin {
            Some(origin) => origin + shift,
            None => shift,
        };
        let total: f64 = covariance.diag().sum();
        let mut projection = Projection {
            mean: mean.to_vec(),
            axes: [vec![0.0; hidden], vec![0.0; hidden]],
            explained: [0.0; 2],
        };
        // What is left of equal rows is rounding, which has a direction too but no meaning.
        let scale = mean.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
        if total <= hidden as f64 * (scale * f64::EPSILON).powi(2) {
            return projection;
        }
        let (values, vectors) = leading(&covariance);
        for (at, &value) in values.iter().take(2).enumerate() {
            // The same for a second component of rows on a line.
            if value > total * 1e-14 {
                projection.explained[at] = (value / total).min(1.0);
                projection.axes[at] = upright(vectors.column(at).to_vec());
            }
        }
        projection
    }
}

impl Projection {
    /// The coordinates of a row (H) in the plane.
    #[must_use]
    pub fn project(&self, row: &[f32]) -> [f64; 2] {
        let along = |axis: &[f64]| {
            row.iter()
                .zip(&self.mean)
                .zip(axis)
                .map(|((&x, mean), axis)| (f64::from(x) - mean) * axis)
                .sum()
        };
        [along(&self.axes[0]), along(&self.axes[1])]
    }
}

/// An axis has no sign of its own: the largest coordinate becomes positive.
fn upright(mut axis: Vec<f64>) -> Vec<f64> {
    let largest = axis.iter().fold(
        0.0_f64,
        |most, &x| if x.abs() > most.abs() { x } else { most },
    );
    if largest < 0.0 {
        for x in &mut axis {
            *x = -*x;
        }
    }
    axis
}

/// The largest eigenvalues of a symmetric matrix, descending, and their eigenvectors as columns.
fn leading(matrix: &Array2<f64>) -> (Vec<f64>, Array2<f64>) {
    let hidden = matrix.nrows();
    let width = WIDTH.min(hidden);
    // Any start that is not orthogonal to an eigenvector does: a fixed scatter of values.
    let mut basis = Array2::from_shape_fn((hidden, width), |(i, j)| {
        let at = (i * width + j + 1) as f64;
        (at * 12.9898).sin() * 43_758.545_3 % 1.0
    });
    orthonormalize(&mut basis);
    let mut values = vec![0.0; width];
    for _ in 0..ROUNDS {
        let image = matrix.dot(&basis);
        let (ritz, turn) = symmetric(basis.t().dot(&image));
        // How far the image of each wanted axis leaves the axis: an eigenvector's doesn't.
        let (axes, images) = (basis.dot(&turn), image.dot(&turn));
        let settled = (0..width.min(2)).all(|at| {
            let rest = &images.column(at) - &(&axes.column(at) * ritz[at]);
            rest.dot(&rest).sqrt() <= TOLERANCE * ritz[0].abs()
        });
        values = ritz;
        if settled {
            return (values, axes);
        }
        basis = images;
        orthonormalize(&mut basis);
    }
    let image = matrix.dot(&basis);
    let (_, turn) = symmetric(basis.t().dot(&image));
    (values, basis.dot(&turn))
}

/// Gram-Schmidt, twice for the digits that the first time loses. A column that adds nothing becomes
/// zero.
fn orthonormalize(basis: &mut Array2<f64>) {
    for at in 0..basis.ncols() {
        let (done, mut rest) = basis.view_mut().split_at(Axis(1), at);
        let mut column = rest.column_mut(0);
        let before = column.dot(&column).sqrt();
        for _ in 0..2 {
            let along = done.t().dot(&column);
            column -= &done.dot(&along);
        }
        let norm = column.dot(&column).sqrt();
        if norm > before * 1e-12 {
            column /= norm;
        } else {
            column.fill(0.0);
        }
    }
}

/// All eigenvalues of a small symmetric matrix, descending, and their eigenvectors as columns:
/// Jacobi's rotations (Golub and Van Loan, 8.5).
fn symmetric(mut matrix: Array2<f64>) -> (Vec<f64>, Array2<f64>) {
    let size = matrix.nrows();
    let mut vectors = Array2::<f64>::eye(size);
    for _ in 0..64 {
        let mut settled = true;
        for p in 0..size {
            for q in p + 1..size {
                let (first, second, both) = (matrix[(p, p)], matrix[(q, q)], matrix[(p, q)]);
                if both.abs() <= f64::EPSILON * (first * second).abs().sqrt() {
                    continue;
                }
                settled = false;
                let theta = (second - first) / (2.0 * both);
                let tangent = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                let turn = Turn {
                    cosine,
                    sine: tangent * cosine,
                };
                let (left, right) = matrix.multi_slice_mut((s![.., p], s![.., q]));
                turn.apply(left, right);
                let (left, right) = matrix.multi_slice_mut((s![p, ..], s![q, ..]));
                turn.apply(left, right);
                let (left, right) = vectors.multi_slice_mut((s![.., p], s![.., q]));
                turn.apply(left, right);
            }
        }
        if settled {
            break;
        }
    }
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|&p, &q| matrix[(q, q)].total_cmp(&matrix[(p, p)]));
    let values = order.iter().map(|&at| matrix[(at, at)]).collect();
    (values, vectors.select(Axis(1), &order))
}

/// A rotation of two vectors in the plane that they span.
struct Turn {
    cosine: f64,
    sine: f64,
}

impl Turn {
    fn apply(&self, left: ArrayViewMut1<f64>, right: ArrayViewMut1<f64>) {
        let &Turn { cosine, sine } = self;
        Zip::from(left).and(right).for_each(|x, y| {
            (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Rows with different spread along each coordinate, around a far mean.
    fn rows() -> impl Strategy<Value = Array2<f32>> {
        (2_usize..40, 1_usize..24).prop_flat_map(|(rows, hidden)| {
            proptest::collection::vec(-1.0_f32..1.0, rows * hidden).prop_map(move |values| {
                let mut all = Array2::from_shape_vec((rows, hidden), values).unwrap();
                for (at, mut column) in all.columns_mut().into_iter().enumerate() {
                    column.mapv_inplace(|x| 100.0 + x * (1 + at % 5) as f32);
                }
                all
            })
        })
    }

    fn projection(rows: &Array2<f32>, block: usize) -> Projection {
        let mut moments = Moments::new(rows.ncols());
        for block in rows.axis_chunks_iter(Axis(0), block) {
            moments.add(&block);
        }
        moments.projection()
    }

    proptest! {
        /// The law of principal components: what is projected is centred and uncorrelated, its
        /// variance is the reported share, and no coordinate varies more than the first component,
        /// nor, once that is taken away, more than the second.
        #[test]
        fn components_are_uncorrelated_and_have_the_told_variance(rows in rows(), block in 1_usize..50) {
            let found = projection(&rows, block);
            let n = rows.nrows() as f64;
            let centred = rows.mapv(f64::from) - &Array1::from(found.mean.clone());
            let total = centred.iter().map(|x| x * x).sum::<f64>() / n;
            let points: Vec<[f64; 2]> = rows.rows().into_iter().map(|r| found.project(&r.to_vec())).collect();
            let moment = |a: usize, b: usize| points.iter().map(|p| p[a] * p[b]).sum::<f64>() / n;
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * total.max(1e-9);
            for axis in 0..2 {
                prop_assert!(points.iter().map(|p| p[axis]).sum::<f64>().abs() / n < 1e-5);
                prop_assert!(near(moment(axis, axis), found.explained[axis] * total));
            }
            prop_assert!(near(moment(0, 1), 0.0));
            prop_assert!(found.explained[0] >= found.explained[1]);
            let mut rest = centred;
            for axis in 0..2 {
                for column in rest.columns() {
                    let most = found.explained[axis] * total * (1.0 + 1e-6) + 1e-9;
                    prop_assert!(column.dot(&column) / n <= most);
                }
                for (mut row, point) in rest.rows_mut().into_iter().zip(&points) {
                    row.scaled_add(-point[axis], &Array1::from(found.axes[axis].clone()));
                }
            }
        }
    }

    #[test]
    fn rows_on_a_line_have_one_component_and_equal_rows_none() {
        let line = Array2::from_shape_fn((10, 3), |(i, j)| (i * (j + 1)) as f32);
        let found = projection(&line, 4);
        assert!((found.explained[0] - 1.0).abs() < 1e-12);
        assert!(found.axes[1].iter().all(|&x| x == 0.0));
        let one = found.axes[0][2] / 3.0;
        assert!((one - 1.0 / 14_f64.sqrt()).abs() < 1e-9);

        for none in [
            projection(&Array2::from_elem((10, 3), 0.1), 4),
            Moments::new(3).projection(),
        ] {
            assert!(none.explained.iter().all(|&x| x == 0.0));
        }
    }
}
