//! Compares the rotary frequencies stored in a checkpoint with those that the graph uses.

use super::canonical::Canonical;
use super::dtype::Dtype;
use super::names::{self, Names};
use super::open::Checkpoint;
use crate::error::Error;
use crate::positions::rotary_frequencies;
use crate::weights::table::{Input, Weights};

/// By how much of itself a frequency may be off that was stored in 16 bits once: a little more than
/// half a unit of its last place.
const HALF_ROUNDING: f32 = 1e-3;
/// The same where it still is in bfloat16.
const BF16_ROUNDING: f32 = 4e-3;
/// Half of the smallest positive number in half precision.
const HALF_SUBNORMAL: f32 = 3e-8;

/// Compares the rotary frequencies in the files with those that the graph uses. Some releases of
/// transformers use the former, some the latter: if they differ, it is unknown which ones the model
/// was trained with. Heads are `head_width` wide, and the graph's frequencies have the base `base`.
///
/// # Errors
/// [`Error::Frequencies`] when one differs by more than rounding, [`Error::Shape`] when there are
/// more or fewer than of a head.
pub fn check_frequencies(
    checkpoint: &Checkpoint,
    names: &Names,
    head_width: usize,
    base: f32,
) -> Result<(), Error> {
    let computed = rotary_frequencies(head_width, base);
    let stored = Canonical {
        checkpoint,
        names: checkpoint
            .tensors
            .keys()
            .filter(|name| names::are_frequencies(names, name))
            .map(|name| (name.clone(), name.as_str()))
            .collect(),
    };
    for (name, _) in stored.names() {
        let input = Input::new(name.to_owned(), &[computed.len()]);
        stored.check(&input)?;
        let (_, tensor) = stored.find(&input)?;
        let bound = match tensor.dtype {
            Dtype::Bf16 => BF16_ROUNDING,
            _ => HALF_ROUNDING,
        };
        let mut left = computed.iter();
        stored.stream(&input, &mut |values| {
            for (&stored, &computed) in values.iter().zip(left.by_ref()) {
                let is_near = (stored - computed).abs() <= computed * bound + HALF_SUBNORMAL;
                if !is_near {
                    return Err(Error::Frequencies {
                        path: tensor.path.clone(),
                        tensor: name.to_owned(),
                        stored,
                        computed,
                        base,
                    });
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}
