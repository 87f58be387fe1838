//! The same sequence once: which windows of a run have the tokens of one that was seen before.
//!
//! What is decided here, while chunks are made, is carried out when they are written. Both go through the segments in the
//! same order, so a slot holds at every moment what was meant. Within a chunk a window shares the result of the first that
//! has its tokens. Across chunks, pooled rows are kept in a fixed number of slots, and a new row takes the slot that was
//! longest out of use.

use std::collections::HashMap;

use hashlink::LruCache;

use super::chunk::Segment;
use crate::engine::Reduce;

/// 128 bits of BLAKE3 of the tokens and of what is taken from them.
type Key = [u8; 16];

/// Where a segment's numbers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The engine; they are kept in this slot.
    Engine {
        /// The slot.
        keep: Option<u32>,
    },
    /// Another segment of the chunk, which comes before.
    Segment(usize),
    /// A slot, filled by a chunk before.
    Slot(u32),
}

/// What was seen so far.
pub struct Repeats {
    slots: usize,
    kept: LruCache<Key, u32>,
    chunk: HashMap<Key, usize>,
    bytes: Vec<u8>,
}

/// Memory for rows that are kept and their keys, in bytes.
const KEPT_BYTES: usize = 64 << 20;

/// What a key costs in the cache, with its links and its place in the hash table.
const KEY_BYTES: usize = 96;

impl Repeats {
    /// For rows of `hidden` values.
    #[must_use]
    pub fn new(hidden: usize) -> Self {
        Self::with_slots(KEPT_BYTES / (KEY_BYTES + 4 * hidden))
    }

    /// With room for so many rows.
    #[must_use]
    pub fn with_slots(slots: usize) -> Self {
        Self {
            slots,
            kept: LruCache::new_unbounded(),
            chunk: HashMap::new(),
            bytes: Vec::new(),
        }
    }

    /// To be called when a chunk begins.
    pub fn begin_chunk(&mut self) {
        self.chunk.clear();
    }

    /// Where the numbers of the chunk's segment number `at` come from; `ids` are the record's tokens.
    pub fn origin(&mut self, at: usize, segment: &Segment, ids: &[u32]) -> Origin {
        let key = self.key(segment, ids);
        if let Some(&first) = self.chunk.get(&key) {
            return Origin::Segment(first);
        }
        let kept = self.kept.get(&key).copied();
        self.chunk.insert(key, at);
        if let Some(slot) = kept {
            return Origin::Slot(slot);
        }
        if segment.reduce == Reduce::Tokens || self.slots == 0 {
            return Origin::Engine { keep: None };
        }
        let slot = if self.kept.len() < self.slots {
            u32::try_from(self.kept.len()).ok()
        } else {
            self.kept.remove_lru().map(|(_, slot)| slot)
        };
        if let Some(slot) = slot {
            self.kept.insert(key, slot);
        }
        Origin::Engine { keep: slot }
    }

    fn key(&mut self, segment: &Segment, ids: &[u32]) -> Key {
        self.bytes.clear();
        let reduce = match segment.reduce {
            Reduce::Mean => 0_u8,
            Reduce::Max => 1,
            Reduce::Tokens => 2,
        };
        self.bytes.push(reduce);
        for end in [segment.range.start, segment.range.end] {
            self.bytes.extend((end as u64).to_le_bytes());
        }
        for id in &ids[segment.window.seen.clone()] {
            self.bytes.extend(id.to_le_bytes());
        }
        let hash = blake3::hash(&self.bytes);
        *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
    }
}

/// The rows in the slots.
#[derive(Debug, Default)]
pub struct Slots {
    values: Vec<f32>,
}

impl Slots {
    /// Fills a slot.
    pub fn put(&mut self, slot: u32, row: &[f32]) {
        let start = slot as usize * row.len();
        if self.values.len() < start + row.len() {
            self.values.resize(start + row.len(), 0.0);
        }
        self.values[start..start + row.len()].copy_from_slice(row);
    }

    /// What a slot holds.
    #[must_use]
    pub fn get(&self, slot: u32, hidden: usize) -> &[f32] {
        let start = slot as usize * hidden;
        &self.values[start..start + hidden]
    }
}

#[cfg(test)]
// The stand-in's numbers are whole.
#[allow(clippy::float_cmp)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batch::Window;

    proptest! {
        /// A stand-in for the engine gives every sequence a row of its own: each segment must get its sequence's row,
        /// however few slots there are and wherever chunks end.
        #[test]
        fn every_segment_gets_the_row_of_its_own_tokens(
            sequences in prop::collection::vec(0..12_u32, 0..200),
            chunk in 1..20_usize,
            slots in 0..8_usize,
            tokens: bool,
        ) {
            let mut repeats = Repeats::with_slots(slots);
            let mut kept = Slots::default();
            for part in sequences.chunks(chunk) {
                repeats.begin_chunk();
                let origins: Vec<Origin> = part.iter().enumerate().map(|(at, &id)| {
                    let segment = Segment {
                        record: at,
                        window: Window { seen: 0..2, kept: 0..2 },
                        range: 1..3,
                        reduce: if tokens { Reduce::Tokens } else { Reduce::Mean },
                        origin: Origin::Engine { keep: None },
                    };
                    repeats.origin(at, &segment, &[id, id + 1])
                }).collect();
                let mut rows: Vec<[f32; 1]> = Vec::new();
                for (at, origin) in origins.iter().enumerate() {
                    let row = match *origin {
                        Origin::Engine { keep } => {
                            // Computed once in a chunk.
                            prop_assert!(!part[..at].contains(&part[at]));
                            let row = [part[at] as f32];
                            if let Some(slot) = keep {
                                prop_assert!(!tokens && (slot as usize) < slots);
                                kept.put(slot, &row);
                            }
                            row
                        }
                        Origin::Segment(first) => {
                            prop_assert!(first < at);
                            rows[first]
                        }
                        Origin::Slot(slot) => [kept.get(slot, 1)[0]],
                    };
                    prop_assert_eq!(row, [part[at] as f32]);
                    rows.push(row);
                }
            }
        }
    }
}
