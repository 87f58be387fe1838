//! The encoder's tensors by names that do not depend on who wrote the checkpoint.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use super::dtype::{Dtype, decode};
use super::names::{self, Names};
use super::open::Checkpoint;
use super::tensor::Tensor;
use crate::error::Error;
use crate::weights::table::{Input, Weights};

/// A checkpoint's tensors by names that do not depend on who wrote it.
#[derive(Debug)]
pub struct Canonical<'checkpoint> {
    pub(super) checkpoint: &'checkpoint Checkpoint,
    pub(super) names: BTreeMap<String, &'checkpoint str>,
}

impl<'checkpoint> Canonical<'checkpoint> {
    /// The encoder's tensors of a checkpoint, as a family of these names spells them.
    ///
    /// # Errors
    /// [`Error::Ambiguous`] when two tensors have one name then.
    pub fn of(checkpoint: &'checkpoint Checkpoint, names: &Names) -> Result<Self, Error> {
        let mut found: BTreeMap<String, &str> = BTreeMap::new();
        let part = checkpoint.is_part(names);
        for name in checkpoint.tensors.keys() {
            if let Some(canonical) = names::canonical(names, name, part)
                && let Some(first) = found.insert(canonical, name)
            {
                if names::are_tied(first, name) {
                    check_equal(checkpoint, first, name)?;
                    continue;
                }
                return Err(Error::Ambiguous {
                    path: checkpoint.path.clone(),
                    first: first.to_owned(),
                    second: name.clone(),
                });
            }
        }
        Ok(Self {
            checkpoint,
            names: found,
        })
    }

    /// Tensors of a checkpoint under the names that are the keys of `names`.
    pub(crate) fn renamed(
        checkpoint: &'checkpoint Checkpoint,
        names: BTreeMap<String, &'checkpoint str>,
    ) -> Self {
        Self { checkpoint, names }
    }

    /// All canonical names, and what the files say instead.
    pub fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.names
            .iter()
            .map(|(canonical, name)| (canonical.as_str(), *name))
    }

    /// The shape of a tensor, by its canonical name.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let name = self.names.get(name)?;
        let tensor = self.checkpoint.tensors.get(*name)?;
        Some(&tensor.shape)
    }

    pub(super) fn find(&self, input: &Input) -> Result<(&str, &Tensor), Error> {
        self.names
            .get(&input.name)
            .and_then(|name| Some((*name, self.checkpoint.tensors.get(*name)?)))
            .ok_or_else(|| Error::MissingTensor {
                path: self.checkpoint.path.clone(),
                tensor: input.name.clone(),
            })
    }
}

impl Weights for Canonical<'_> {
    fn has(&self, input: &Input) -> bool {
        self.names.contains_key(&input.name)
    }

    fn check(&self, input: &Input) -> Result<(), Error> {
        let (name, tensor) = self.find(input)?;
        if tensor.shape != input.shape {
            return Err(Error::Shape {
                path: tensor.path.clone(),
                tensor: name.to_owned(),
                expected: input.shape.clone(),
                found: tensor.shape.clone(),
            });
        }
        if let Dtype::Other(dtype, _) = tensor.dtype {
            return Err(Error::Dtype {
                path: tensor.path.clone(),
                tensor: name.to_owned(),
                dtype: dtype.to_owned(),
            });
        }
        Ok(())
    }

    fn stream(
        &self,
        input: &Input,
        take: &mut dyn FnMut(&[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        stream(self.find(input)?.1, take)
    }
}

impl Checkpoint {
    /// All values of a tensor, by its name in the files; `None` if there is none, or its values are
    /// no floats.
    pub(crate) fn values(&self, name: &str) -> Option<Result<Vec<f32>, Error>> {
        let tensor = self.tensors.get(name)?;
        if matches!(tensor.dtype, Dtype::Other(..)) {
            return None;
        }
        let mut values = Vec::new();
        let read = stream(tensor, &mut |piece| {
            values.extend_from_slice(piece);
            Ok(())
        });
        Some(read.map(|()| values))
    }
}

/// Hands a tensor's values out in order, in pieces of any length.
fn stream(tensor: &Tensor, take: &mut dyn FnMut(&[f32]) -> Result<(), Error>) -> Result<(), Error> {
    let failed = || Error::io(&tensor.path, "read");
    if let (true, &[rows, columns]) = (tensor.column_major, &tensor.shape[..]) {
        return stream_columns(tensor, [rows, columns], BAND, take);
    }
    let mut file = File::open(&tensor.path).map_err(failed())?;
    file.seek(SeekFrom::Start(tensor.offset))
        .map_err(failed())?;
    let mut left = tensor.shape.iter().product::<usize>() * tensor.dtype.bytes();
    // A multiple of every width.
    let mut bytes = vec![0; left.min(1 << 20)];
    let mut values = Vec::with_capacity(bytes.len() / tensor.dtype.bytes());
    while left > 0 {
        let piece = left.min(bytes.len());
        file.read_exact(&mut bytes[..piece]).map_err(failed())?;
        values.clear();
        decode(tensor.dtype, &bytes[..piece], &mut values);
        take(&values)?;
        left -= piece;
    }
    Ok(())
}

/// Checks that two names have one tensor's values.
fn check_equal(checkpoint: &Checkpoint, first: &str, second: &str) -> Result<(), Error> {
    let read = |name: &str| {
        let mut bits: Vec<u32> = Vec::new();
        let tensor = checkpoint.tensors.get(name);
        let Some(tensor) = tensor.filter(|tensor| !matches!(tensor.dtype, Dtype::Other(..))) else {
            return Ok((None, bits));
        };
        stream(tensor, &mut |values| {
            bits.extend(values.iter().map(|value| value.to_bits()));
            Ok(())
        })?;
        Ok::<_, Error>((Some(tensor.shape.clone()), bits))
    };
    if read(first)? == read(second)? {
        return Ok(());
    }
    Err(Error::config(
        &checkpoint.path,
        format!(
            "{first} and {second} are names of one tensor, but their values differ: save the model \
             again, with the right values under both"
        ),
    ))
}

/// Bytes of a band of rows of a matrix that is stored column after column. The larger they are, the
/// fewer pieces the columns are read in.
const BAND: usize = 16 << 20;

/// Streams a matrix that is stored column after column in the order of its rows, in bands of about
/// `band` bytes.
fn stream_columns(
    tensor: &Tensor,
    [rows, columns]: [usize; 2],
    band: usize,
    take: &mut dyn FnMut(&[f32]) -> Result<(), Error>,
) -> Result<(), Error> {
    let failed = || Error::io(&tensor.path, "read");
    let width = tensor.dtype.bytes();
    let most = (band / size_of::<f32>() / columns).clamp(1, rows);
    let mut file = File::open(&tensor.path).map_err(failed())?;
    let mut bytes = vec![0; most * width];
    let mut part = Vec::with_capacity(most);
    let mut values = vec![0.0; most * columns];
    for first in (0..rows).step_by(most) {
        let count = most.min(rows - first);
        for column in 0..columns {
            let at = ((column * rows + first) * width) as u64;
            file.seek(SeekFrom::Start(tensor.offset + at))
                .map_err(failed())?;
            let bytes = &mut bytes[..count * width];
            file.read_exact(bytes).map_err(failed())?;
            part.clear();
            decode(tensor.dtype, bytes, &mut part);
            for (row, &value) in values.chunks_exact_mut(columns).zip(&part) {
                row[column] = value;
            }
        }
        take(&values[..count * columns])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_of_any_height_give_the_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("columns");
        let (rows, columns) = (7_u8, 3);
        // The value is 10 times the row and the column, behind two others.
        let value = |row: u8, column: u8| f32::from(10 * row + column);
        let stored = (0..columns).flat_map(|column| (0..rows).map(move |row| value(row, column)));
        let all = [-1.0, -1.0].into_iter().chain(stored);
        std::fs::write(&path, all.flat_map(f32::to_le_bytes).collect::<Vec<u8>>()).unwrap();
        let tensor = Tensor {
            path,
            dtype: Dtype::F32,
            shape: vec![7, 3],
            offset: 8,
            column_major: true,
        };
        let expected: Vec<f32> = (0..rows)
            .flat_map(|row| (0..columns).map(move |column| value(row, column)))
            .collect();
        for band in [1, 12, 24, 40, 84, 1000] {
            let mut found = Vec::new();
            stream_columns(&tensor, [7, 3], band, &mut |values| {
                found.extend_from_slice(values);
                Ok(())
            })
            .unwrap();
            assert_eq!(found, expected, "{band}");
        }
    }
}
