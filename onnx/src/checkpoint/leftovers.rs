//! That the graph has a place for all of the encoder's tensors.
//!
//! Apart from the encoder, a checkpoint may contain anything: heads, a decoder, the state of an
//! optimiser. A tensor of the encoder that the graph does not use would silently change the
//! embeddings, so it is an error.

use std::collections::BTreeSet;
use std::path::Path;

use super::canonical::Canonical;
use super::names::{Beside, Names, beside, in_layer};
use super::remedy::Remedy;
use crate::error::Error;
use crate::weights::table::Planned;

/// Checks that the graph has a place for all tensors of the encoder.
///
/// # Errors
/// [`Error::Config`] if there are more blocks than in the configuration, [`Error::Leftover`] for
/// anything else.
pub fn check(
    path: &Path,
    names: &Names,
    plan: &[Planned],
    layers: usize,
    weights: &Canonical<'_>,
) -> Result<(), Error> {
    let used: BTreeSet<&str> = plan
        .iter()
        .flat_map(|planned| planned.source.resolve(weights).inputs())
        .map(|input| input.name.as_str())
        .collect();
    let all = weights.names().collect::<Vec<_>>();
    let left: Vec<(&str, &str)> = all
        .iter()
        .copied()
        .filter(|(canonical, _)| !used.contains(canonical))
        .collect();
    let Some((_, first)) = left.first() else {
        return Ok(());
    };
    let blocks = left
        .iter()
        .filter_map(|(canonical, _)| in_layer(canonical))
        .map(|(layer, _)| layer.saturating_add(1))
        .max();
    if let Some(blocks) = blocks.filter(|&blocks| blocks > layers) {
        return Err(Error::config(
            path,
            format!("the configuration says {layers} layers, the weights have {blocks}"),
        ));
    }
    let help = Remedy::of(&left).unwrap_or_else(|| {
        let sides = left
            .iter()
            .map(|(canonical, name)| beside(names, canonical, name));
        if left.len() == all.len() {
            Remedy::Foreign
        } else if sides.clone().any(|side| side.is_none()) {
            Remedy::Variant
        } else if sides.flatten().any(|side| side == Beside::Feeding) {
            Remedy::Input
        } else {
            Remedy::Unknown
        }
    });
    Err(Error::Leftover {
        path: path.to_path_buf(),
        count: left.len(),
        first: (*first).to_owned(),
        second: left.get(1).map(|(_, second)| (*second).to_owned()),
        help,
    })
}
