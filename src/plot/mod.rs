//! Pictures in SVG: points in two dimensions, bars, heat maps, and the principal components that
//! make points of vectors.

pub mod bar_chart;
pub mod heat_map;
pub mod pca;
pub mod scatter;
