//! Pictures in SVG: points in two dimensions, bars, and the principal components that make points
//! of vectors.

pub mod bar_chart;
pub mod pca;
pub mod scatter;
