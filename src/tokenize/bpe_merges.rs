//! Byte-pair encoding without a priority queue, for the merges that BPE's training makes.

use serde_json::Value;
use tokenizers::Model;
use tokenizers::models::bpe::BPE;

/// What a byte is to the tokenizer: a letter of the vocabulary, by its number, or one of these.
pub type Letter = u8;

/// A space: no token.
pub const SPACE: Letter = u8::MAX;

/// Outside of the vocabulary.
pub const UNKNOWN: Letter = u8::MAX - 1;

/// Positions are 32-bit; a sequence of 4 GB would not fit any model.
pub fn position(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// Ids and starts of the tokens so far.
#[derive(Default)]
pub struct Tokens {
    /// The ids.
    pub ids: Vec<u32>,
    /// Where each starts in the sequence.
    pub starts: Vec<u32>,
}

impl Tokens {
    /// Appends a token that starts at letter `at`.
    pub fn push(&mut self, id: u32, at: usize) {
        self.ids.push(id);
        self.starts.push(position(at));
    }
}

/// Maximum size of the tree; with larger ones, the library is used. A tree of 65,536 DNA tokens of
/// 16 bases each has half this size.
const MOST_SLOTS: usize = 1 << 23;

/// No token.
const NONE: u32 = u32::MAX;

/// Byte-pair encoding without a queue, in time linear in the sequence.
///
/// BPE merges the pair of lowest rank, the first of several, until no pair is left. What happens to
/// a stretch of letters until something merges across its border is what would happen to it alone.
/// So tokens that each encode to themselves are the encoding of their sequence exactly when each
/// two neighbours, alone, encode to these two: only one way to cut a sequence is like that. It is
/// found from left to right: the longest token that fits its left neighbour, else the next shorter
/// one; where none fits, the left neighbour was wrong, and its end is never tried again.
///
/// Whether two tokens encode to themselves side by side is told by undoing their merges, the latest
/// first, and looking at each step for a merge across the border that would have come before the
/// one just undone. This needs each token to come from one merge, of a higher rank than those of
/// its parts: so it is in what BPE's training makes.
pub struct Merges {
    /// The vocabulary's single letters.
    pub letters: Vec<u8>,
    /// Tree of all tokens that encode to themselves: for each node and letter, the first child slot
    /// of the next node, or 0.
    children: Vec<u32>,
    /// The token that ends at a node, or [`NONE`]; by child slot over the number of letters.
    token: Vec<u32>,
    /// For each token, the next shorter token that is a prefix of it, or [`NONE`].
    shorter: Vec<u32>,
    /// For each token: how many letters.
    length: Vec<u32>,
    /// For each token: its left and right part (itself for a letter), and its merge's rank plus 1
    /// (0 for a letter).
    pub made: Vec<[u32; 3]>,
    /// Ranks plus 1 of pairs.
    pairs: Pairs,
}

impl Merges {
    /// `None` where the merges are not such as the method needs.
    pub fn new(settings: &Value, model: &BPE) -> Option<Self> {
        let vocabulary = model.get_vocab();
        let size = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
        // A pair of tokens is one 32-bit number below.
        if size > 1 << 16 {
            return None;
        }
        let mut length = vec![0; size];
        let mut made = vec![[0; 3]; size];
        let mut letters = Vec::new();
        let mut seen = vec![false; size];
        for (token, &id) in &vocabulary {
            if std::mem::replace(&mut seen[id as usize], true) {
                return None;
            }
            length[id as usize] = u32::try_from(token.len()).ok()?;
            made[id as usize] = [id, id, 0];
            if let [letter] = *token.as_bytes() {
                letters.push(letter);
            }
        }
        letters.sort_unstable();
        let mut pairs = Vec::new();
        for (rank, merge) in (1..).zip(settings["merges"].as_array()?) {
            let (left, right) = match merge {
                Value::String(pair) => pair.split_once(' ')?,
                pair => (pair[0].as_str()?, pair[1].as_str()?),
            };
            let id = |token: &str| vocabulary.get(token).copied();
            let (a, b, whole) = (id(left)?, id(right)?, id(&format!("{left}{right}"))?);
            let parts_ready = [a, b].iter().all(|&part| {
                let made = made[part as usize];
                made[2] > 0 || length[part as usize] == 1
            });
            if !parts_ready || made[whole as usize][2] > 0 {
                return None;
            }
            made[whole as usize] = [a, b, rank];
            pairs.push((a, b, rank));
        }
        let mut merges = Self {
            children: vec![0; letters.len()],
            token: vec![NONE],
            shorter: vec![NONE; size],
            pairs: Pairs::new(&pairs),
            letters,
            length,
            made,
        };
        for (token, &id) in &vocabulary {
            let made = merges.length[id as usize] == 1 || merges.made[id as usize][2] > 0;
            let itself = || {
                model
                    .tokenize(token)
                    .is_ok_and(|tokens| matches!(&tokens[..], [one] if one.id == id))
            };
            if made && itself() {
                merges.plant(token, id)?;
            }
        }
        merges.link();
        Some(merges)
    }

    /// Adds a token to the tree.
    fn plant(&mut self, token: &str, id: u32) -> Option<()> {
        let width = self.letters.len();
        let mut node = 0;
        for byte in token.bytes() {
            let slot = node + self.letters.binary_search(&byte).ok()?;
            if self.children[slot] == 0 {
                if self.children.len() > MOST_SLOTS {
                    return None;
                }
                self.children[slot] = u32::try_from(self.children.len()).ok()?;
                self.children.resize(self.children.len() + width, 0);
                self.token.push(NONE);
            }
            node = self.children[slot] as usize;
        }
        self.token[node / width] = id;
        Some(())
    }

    /// Fills `shorter`, parents first.
    fn link(&mut self) {
        let width = self.letters.len();
        let mut nodes = vec![(0, NONE)];
        while let Some((node, above)) = nodes.pop() {
            let token = self.token[node / width.max(1)];
            let last = if token == NONE {
                above
            } else {
                self.shorter[token as usize] = above;
                token
            };
            let children = &self.children[node..node + width];
            nodes.extend(
                children
                    .iter()
                    .filter(|&&child| child != 0)
                    .map(|&child| (child as usize, last)),
            );
        }
    }

    /// Appends the tokens of a run of letters that starts at `offset` of its sequence. `None` if
    /// there is no way to cut it, which can't be: then the library has to do it.
    pub fn encode(&self, run: &[Letter], offset: usize, tokens: &mut Tokens) -> Option<()> {
        let first = tokens.ids.len();
        let mut wrong = vec![0_u64; run.len() / 64 + 1];
        let mut at = 0;
        let mut next = self.longest(run);
        while at < run.len() {
            let left = if tokens.ids.len() > first {
                tokens.ids.last().copied()
            } else {
                None
            };
            while next != NONE {
                let end = at + self.length[next as usize] as usize;
                if wrong[end / 64] >> (end % 64) & 1 == 0
                    && left.is_none_or(|left| self.fit(left, next))
                {
                    break;
                }
                next = self.shorter[next as usize];
            }
            if next == NONE {
                wrong[at / 64] |= 1 << (at % 64);
                let last = left?;
                tokens.ids.pop();
                tokens.starts.pop();
                at -= self.length[last as usize] as usize;
                next = self.shorter[last as usize];
            } else {
                tokens.push(next, offset + at);
                at += self.length[next as usize] as usize;
                next = self.longest(&run[at..]);
            }
        }
        Some(())
    }

    /// The longest token that is a prefix of a run, or [`NONE`].
    fn longest(&self, run: &[Letter]) -> u32 {
        let width = self.letters.len();
        let mut longest = NONE;
        let mut node = 0;
        for &letter in run {
            node = self.children[node + usize::from(letter)] as usize;
            if node == 0 {
                break;
            }
            let token = self.token[node / width];
            if token != NONE {
                longest = token;
            }
        }
        longest
    }

    /// Whether two tokens, side by side, encode to themselves.
    fn fit(&self, mut left: u32, mut right: u32) -> bool {
        // A merge across the border of this rank or a higher one comes too late.
        let mut late = u32::MAX;
        loop {
            if self.pairs.rank(left, right) < late {
                return false;
            }
            let [_, left_end, left_rank] = self.made[left as usize];
            let [right_start, _, right_rank] = self.made[right as usize];
            // Of one rank the left one came first, as does a merge across the border before the
            // right one.
            if left_rank > right_rank {
                left = left_end;
                late = left_rank;
            } else if right_rank > 0 {
                right = right_start;
                late = right_rank + 1;
            } else {
                return true;
            }
        }
    }
}

/// Ranks of pairs: a table of open addresses, small enough for a core's cache.
struct Pairs {
    /// Pair and rank. A free slot has the rank of an invalid pair.
    slots: Vec<(u32, u32)>,
    shift: u32,
}

impl Pairs {
    fn new(pairs: &[(u32, u32, u32)]) -> Self {
        let bits = (pairs.len() * 4)
            .next_power_of_two()
            .trailing_zeros()
            .max(4);
        let mut table = Self {
            slots: vec![(0, u32::MAX); 1 << bits],
            shift: 32 - bits,
        };
        for &(left, right, rank) in pairs {
            let pair = left << 16 | right;
            let mut at = table.place(pair);
            while table.slots[at].1 != u32::MAX {
                at = (at + 1) & (table.slots.len() - 1);
            }
            table.slots[at] = (pair, rank);
        }
        table
    }

    fn place(&self, pair: u32) -> usize {
        (pair.wrapping_mul(0x9e37_79b1) >> self.shift) as usize
    }

    /// `u32::MAX` for an invalid pair.
    fn rank(&self, left: u32, right: u32) -> u32 {
        let pair = left << 16 | right;
        let mut at = self.place(pair);
        loop {
            let (found, rank) = self.slots[at];
            if found == pair || rank == u32::MAX {
                return rank;
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }
}
