//! The contact head of ESM models (Rao et al., 2021): a logistic regression over the symmetrised
//! and corrected attention maps of all blocks. It is a small file of its own in a model folder, so
//! that weights and graphs of a model are the same with and without it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, Settings, pytorch};
use crate::error::Error;
use crate::weights::random::Random;
use crate::weights::table::{Input, Weights};

/// The name of its file in a model folder.
pub const CONTACT_HEAD_FILE: &str = "contact_head.json";

/// Longer than that of any model.
pub(crate) const LONGEST: u64 = 16 << 20;

/// Names of its tensors, behind what the base model's names begin with.
const WEIGHT: &str = "contact_head.regression.weight";
const BIAS: &str = "contact_head.regression.bias";
/// What comes before them: nothing, or the base model in one of Hugging Face's and fair-esm's
/// classes.
const PREFIXES: [&str; 3] = ["", "esm.", "encoder."];

/// The weights of a contact head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContactHead {
    /// A weight for the attention map of each head of each block, [layers * heads]: all heads of
    /// the first block, then those of the second.
    pub weight: Vec<f32>,
    /// Added to the sum, before the logistic function.
    pub bias: f32,
}

impl ContactHead {
    /// The head of a checkpoint, or the one that fair-esm's files have beside them; `None` if there
    /// is none of so many weights, or they are all zero.
    ///
    /// # Errors
    /// When a file with a head cannot be read.
    pub(crate) fn of(checkpoint: &Checkpoint, number: usize) -> Result<Option<Self>, Error> {
        if let Settings::FairEsm { path, .. } = &checkpoint.settings
            && let Some(beside) = regression_file(path)
        {
            let archive = pytorch::read(&beside)?;
            let regression = Checkpoint {
                path: beside.clone(),
                settings: checkpoint.settings.clone(),
                files: vec![beside],
                tensors: archive.tensors,
            };
            return Self::read(&regression, number);
        }
        Self::read(checkpoint, number)
    }

    fn read(checkpoint: &Checkpoint, number: usize) -> Result<Option<Self>, Error> {
        let find = |name: &str| {
            let mut prefixes = PREFIXES.iter();
            prefixes.find_map(|prefix| checkpoint.values(&format!("{prefix}{name}")))
        };
        let (Some(weight), Some(bias)) = (find(WEIGHT), find(BIAS)) else {
            return Ok(None);
        };
        let (weight, bias) = (weight?, bias?);
        let fits = weight.len() == number && bias.len() == 1;
        let numbers = weight.iter().chain(&bias).all(|value| value.is_finite());
        if !fits || !numbers || weight.iter().all(|&value| value == 0.0) {
            return Ok(None);
        }
        Ok(Some(Self {
            weight,
            bias: bias[0],
        }))
    }

    /// A random one of so many weights.
    ///
    /// # Errors
    /// None: random numbers are always there.
    pub(crate) fn random(number: usize, random: Random) -> Result<Self, Error> {
        let values = |name: &str, shape: &[usize]| {
            let mut values = Vec::new();
            random.stream(&Input::new(name.to_owned(), shape), &mut |piece| {
                values.extend_from_slice(piece);
                Ok(())
            })?;
            Ok::<_, Error>(values)
        };
        Ok(Self {
            // As large as those of published models: probabilities from near 0 to near 1.
            weight: values(WEIGHT, &[number])?
                .into_iter()
                .map(|value| 20.0 * value)
                .collect(),
            bias: values(BIAS, &[1])?[0] - 3.0,
        })
    }

    /// The text of its file.
    pub(crate) fn text(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        Ok(text)
    }
}

/// `NAME-contact-regression.pt` beside fair-esm's `NAME.pt`, if it is there.
fn regression_file(path: &Path) -> Option<PathBuf> {
    let name = path.file_stem()?.to_str()?;
    let beside = path.with_file_name(format!("{name}-contact-regression.pt"));
    beside.is_file().then_some(beside)
}
