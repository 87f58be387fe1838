//! The same sequence once: which windows of a run have the tokens of one that was seen before.
//!
//! What is decided here, while chunks are made, is carried out when they are written. Both go
//! through the segments in the same order, so a place in the cache holds at every moment what was
//! meant. Within a chunk a window shares the result of the first that has its tokens. Across
//! chunks, pooled rows are kept in a cache of fixed size, where a new row takes the place of the
//! least recently used one.

use std::collections::HashMap;

use hashlink::LruCache;

use crate::batch::ModelInput;
use crate::engine::batch::Reduce;

/// 128 bits of BLAKE3 of the tokens and of what is taken from them.
type Key = [u8; 16];

/// Where a segment's numbers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The engine.
    Engine {
        /// Where in the cache they are kept for later chunks, if they are.
        keep: Option<u32>,
    },
    /// The earlier segment of the chunk with this index.
    Segment(usize),
    /// This place in the cache, filled by an earlier chunk.
    Cached(u32),
}

/// Finds windows with the same tokens as an earlier one.
pub struct Dedup {
    /// Rows that the cache has room for.
    capacity: usize,
    cached: LruCache<Key, u32>,
    /// The first segment of the chunk with each key.
    chunk: HashMap<Key, usize>,
    bytes: Vec<u8>,
}

/// Memory for the cached rows and their keys, in bytes.
const CACHE_BYTES: usize = 64 << 20;

/// What a key costs in the cache, with its links and its place in the hash table.
const KEY_BYTES: usize = 96;

impl Dedup {
    /// For rows of `hidden` values.
    #[must_use]
    pub fn new(hidden: usize) -> Self {
        Self::with_capacity(CACHE_BYTES / (KEY_BYTES + 4 * hidden))
    }

    /// Creates a cache with this capacity in rows.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            capacity,
            cached: LruCache::new_unbounded(),
            chunk: HashMap::new(),
            bytes: Vec::new(),
        }
    }

    /// Must be called at the start of each chunk.
    pub fn begin_chunk(&mut self) {
        self.chunk.clear();
    }

    /// Where the numbers of the chunk's segment number `at` come from; `ids` are the record's
    /// tokens.
    pub fn origin(&mut self, at: usize, input: &ModelInput, reduce: Reduce, ids: &[u32]) -> Origin {
        let key = self.key(input, reduce, ids);
        if let Some(&first) = self.chunk.get(&key) {
            return Origin::Segment(first);
        }
        let cached = self.cached.get(&key).copied();
        self.chunk.insert(key, at);
        if let Some(place) = cached {
            return Origin::Cached(place);
        }
        if reduce == Reduce::Tokens || self.capacity == 0 {
            return Origin::Engine { keep: None };
        }
        let place = if self.cached.len() < self.capacity {
            u32::try_from(self.cached.len()).ok()
        } else {
            self.cached.remove_lru().map(|(_, place)| place)
        };
        if let Some(place) = place {
            self.cached.insert(key, place);
        }
        Origin::Engine { keep: place }
    }

    fn key(&mut self, input: &ModelInput, reduce: Reduce, ids: &[u32]) -> Key {
        self.bytes.clear();
        let reduce = match reduce {
            Reduce::Mean => 0_u8,
            Reduce::Max => 1,
            Reduce::Tokens => 2,
            Reduce::Both => 3,
        };
        self.bytes.push(reduce);
        for range in &input.ranges {
            for end in [range.start, range.end] {
                self.bytes.extend((end as u64).to_le_bytes());
            }
        }
        for id in &ids[input.seen.clone()] {
            self.bytes.extend(id.to_le_bytes());
        }
        let hash = blake3::hash(&self.bytes);
        *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
    }
}

/// The cached rows.
#[derive(Debug, Default)]
pub struct RowCache {
    values: Vec<f32>,
}

impl RowCache {
    /// Puts a row in a place.
    pub fn put(&mut self, place: u32, row: &[f32]) {
        let start = place as usize * row.len();
        if self.values.len() < start + row.len() {
            self.values.resize(start + row.len(), 0.0);
        }
        self.values[start..start + row.len()].copy_from_slice(row);
    }

    /// The row of `hidden` values in a place.
    #[must_use]
    pub fn get(&self, place: u32, hidden: usize) -> &[f32] {
        let start = place as usize * hidden;
        &self.values[start..start + hidden]
    }
}

#[cfg(test)]
// The stand-in's numbers are whole.
#[allow(clippy::float_cmp)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tokenize::SpecialTokens;

    proptest! {
        /// A stand-in for the engine gives every sequence a row of its own: each segment must get
        /// its sequence's row, however small the cache is and wherever chunks end.
        #[test]
        fn every_segment_gets_the_row_of_its_own_tokens(
            sequences in prop::collection::vec(0..12_u32, 0..200),
            chunk in 1..20_usize,
            capacity in 0..8_usize,
            tokens: bool,
        ) {
            let mut dedup = Dedup::with_capacity(capacity);
            let mut cache = RowCache::default();
            for part in sequences.chunks(chunk) {
                dedup.begin_chunk();
                let origins: Vec<Origin> = part.iter().enumerate().map(|(at, &id)| {
                    let input = ModelInput::new(at, 0..2, vec![1..3], &SpecialTokens::default());
                    let reduce = if tokens { Reduce::Tokens } else { Reduce::Mean };
                    dedup.origin(at, &input, reduce, &[id, id + 1])
                }).collect();
                let mut rows: Vec<[f32; 1]> = Vec::new();
                for (at, origin) in origins.iter().enumerate() {
                    let row = match *origin {
                        Origin::Engine { keep } => {
                            // Computed once in a chunk.
                            prop_assert!(!part[..at].contains(&part[at]));
                            let row = [part[at] as f32];
                            if let Some(place) = keep {
                                prop_assert!(!tokens && (place as usize) < capacity);
                                cache.put(place, &row);
                            }
                            row
                        }
                        Origin::Segment(first) => {
                            prop_assert!(first < at);
                            rows[first]
                        }
                        Origin::Cached(place) => [cache.get(place, 1)[0]],
                    };
                    prop_assert_eq!(row, [part[at] as f32]);
                    rows.push(row);
                }
            }
        }
    }
}
