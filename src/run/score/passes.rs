//! The sequences that the model computes for a score: whole windows, or one for each masked
//! position.

use std::ops::Range;
use std::sync::Arc;

use super::method::Method;
use super::options::ScoreOptions;
use crate::batch::ModelInput;
use crate::engine::batch::Reduce;
use crate::run::chunk::{Chunk, Segment};
use crate::run::dedup::Dedup;
use crate::tokenize::{Encoded, SpecialTokens};

/// One sequence for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// The record, as an index into the chunk's scored ones.
    pub record: usize,
    /// The window, in the chunk's segments.
    pub segment: usize,
    /// What is taken from it.
    pub what: Taken,
}

/// What is taken from a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// The rows of all tokens that the window answers for.
    All,
    /// The row of this token of the record, which is masked.
    Masked(usize),
    /// The row of the substitution with this index of a variant, whose positions are all masked.
    Joint {
        /// The variant, as an index into all.
        variant: usize,
        /// The substitution.
        substitution: usize,
    },
}

/// The tokens of its record that a window answers for.
pub fn kept(input: &ModelInput, special: &SpecialTokens) -> Range<usize> {
    let shift = |token: usize| (input.seen.start + token).saturating_sub(special.front.len());
    let range = input.ranges.first().cloned().unwrap_or_default();
    shift(range.start)..shift(range.end)
}

/// All passes of a chunk's records, of which `records` has the ids and windows. Joint variants
/// whose positions are in no window together have none.
pub fn of_chunk<'r>(
    chunk: &Chunk,
    records: impl Iterator<Item = (&'r str, Range<usize>)>,
    options: &ScoreOptions,
    special: &SpecialTokens,
) -> Vec<Pass> {
    let mut passes = Vec::new();
    for (number, (id, segments)) in records.enumerate() {
        let pass = |segment: usize, what: Taken| Pass {
            record: number,
            segment,
            what,
        };
        let window = |at: usize| {
            let mut segments = segments.clone();
            segments.find(|&segment| kept(&chunk.segments[segment].input, special).contains(&at))
        };
        if options.method == Method::Unmasked {
            passes.extend(segments.clone().map(|segment| pass(segment, Taken::All)));
            continue;
        }
        let Some((_, variants)) = &options.variants else {
            for segment in segments.clone() {
                let tokens = kept(&chunk.segments[segment].input, special);
                passes.extend(tokens.map(|at| pass(segment, Taken::Masked(at))));
            }
            continue;
        };
        let mut positions = Vec::new();
        for &variant in variants.of(id) {
            let substitutions = &variants.all[variant].substitutions;
            if !options.joint || substitutions.len() == 1 {
                positions.extend(substitutions.iter().map(|one| one.at));
                continue;
            }
            // Where the first position is most central, if the others are seen there.
            let segment = substitutions.first().and_then(|one| window(one.at));
            let seen = |segment: &usize| {
                let seen = &chunk.segments[*segment].input.seen;
                substitutions.iter().all(|one| seen.contains(&one.at))
            };
            if let Some(segment) = segment.filter(seen) {
                passes.extend((0..substitutions.len()).map(|substitution| {
                    let what = Taken::Joint {
                        variant,
                        substitution,
                    };
                    pass(segment, what)
                }));
            }
        }
        positions.sort_unstable();
        positions.dedup();
        let single = positions.into_iter().filter_map(|at| {
            let segment = window(at)?;
            Some(pass(segment, Taken::Masked(at)))
        });
        passes.extend(single);
    }
    passes
}

/// How passes are laid out as a chunk.
pub struct PassLayout<'a> {
    /// What is scored, and how.
    pub options: &'a ScoreOptions,
    /// The model's special tokens.
    pub special: &'a SpecialTokens,
    /// The mask token, where the method masks.
    pub mask: Option<u32>,
    /// Tokens of a batch.
    pub batch_tokens: usize,
    /// Whether the engine pads the sequences of a batch to one length.
    pub padded: bool,
}

impl PassLayout<'_> {
    /// Passes as a chunk for the engine: one segment each, in order. Those with the same tokens are
    /// computed once.
    pub fn chunk(&self, passes: &[Pass], of: &Chunk) -> Chunk {
        let mut chunk = Chunk {
            number: of.number,
            entries: Vec::new(),
            segments: Vec::with_capacity(passes.len()),
            encoded: Vec::with_capacity(passes.len()),
            batches: Vec::new(),
            bytes: of.bytes,
            shares: false,
        };
        let reduce = self.options.method.reduce();
        // Nothing is kept for later chunks.
        let mut dedup = Dedup::with_capacity(0);
        dedup.begin_chunk();
        for pass in passes {
            let window = &of.segments[pass.segment].input;
            let seen = &of.encoded[window.record].ids[window.seen.clone()];
            let mut ids = seen.to_vec();
            let mut range = window.ranges.first().cloned().unwrap_or_default();
            if let Some((taken, masked)) = self.masked(&pass.what) {
                for at in masked {
                    ids[at - window.seen.start] = self.mask.unwrap_or(self.special.unk);
                }
                let row = self.special.front.len() + taken - window.seen.start;
                range = row..row + 1;
            }
            let input =
                ModelInput::new(chunk.encoded.len(), 0..ids.len(), vec![range], self.special);
            let origin = dedup.origin(chunk.segments.len(), &input, reduce, &ids);
            chunk.segments.push(Segment {
                input,
                reduce,
                origin,
                is_shared: false,
            });
            chunk.encoded.push(Arc::new(Encoded {
                letters: ids.len(),
                ids,
                ..Encoded::default()
            }));
        }
        chunk.group(self.batch_tokens, self.padded);
        chunk
    }

    /// The token whose row is taken, and all that are masked; `None`: nothing is masked.
    fn masked(&self, what: &Taken) -> Option<(usize, Vec<usize>)> {
        match *what {
            Taken::All => None,
            Taken::Masked(at) => Some((at, vec![at])),
            Taken::Joint {
                variant,
                substitution,
            } => {
                let (_, variants) = self.options.variants.as_ref()?;
                let all = &variants.all[variant].substitutions;
                let masked = all.iter().map(|one| one.at).collect();
                Some((all[substitution].at, masked))
            }
        }
    }
}

impl Method {
    /// The output of the graph: the rows of all tokens, or that of the masked one, as the mean of a
    /// range of one.
    #[must_use]
    pub fn reduce(self) -> Reduce {
        match self {
            Self::Unmasked => Reduce::Tokens,
            Self::Masked => Reduce::Mean,
        }
    }
}
