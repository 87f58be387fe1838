//! DNABERT-2's and DNABERT-S's vocabulary: byte-pair encoding, from the model's own `tokenizer.json`.
//!
//! The rule: letters are taken in upper case, U as T (unless the vocabulary has U); then the ids are those that the
//! `tokenizers` library gives. A letter outside of the vocabulary, N and the other ambiguous codes as a rule, is one unknown
//! token (a run of them is one, where the file says `fuse_unk`), and no token reaches over it. Truncation and padding that the
//! file has switched on are switched off, as transformers does unless a call asks for them; so is dropout, which makes ids
//! random. Names of special tokens in a sequence are letters like any others, and a byte that is not ASCII is one unknown token.
//! A file whose other parts would give other ids is refused: tokens added that are cut out of sequences first, and anything
//! around a sequence but one [CLS] and one [SEP].
//!
//! The library keeps a priority queue over the whole sequence, for DNA has no spaces: about 2 MB of bases a second. For the
//! files of these models [`Merges`] gives the same ids many times faster; with any other the library does the work.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::{Model, Tokenizer as Library};

use super::alphabet::Alphabet;
use super::encoded::Encoded;
use super::error::VocabularyError;
use super::family_rules::FamilyRules;
use super::special::{BERT, SpecialNames, SpecialTokens};
use super::tokenizer::Tokenizer;

/// A `tokenizer.json` at work.
pub struct BpeTokenizer {
    library: Library,
    special: SpecialTokens,
    alphabet: Alphabet,
    size: usize,
    /// What the library is given for each byte of a sequence.
    read: [u8; 256],
    fast: Option<Fast>,
}

impl BpeTokenizer {
    /// From the file's text.
    ///
    /// # Errors
    /// When it is no BPE tokenizer or lacks a special token.
    pub fn from_json(text: &str) -> Result<Self, VocabularyError> {
        Self::from_json_with(text, &FamilyRules::default())
    }

    /// The same, with a family's own rules.
    ///
    /// # Errors
    /// As [`BpeTokenizer::from_json`].
    pub fn from_json_with(text: &str, rules: &FamilyRules) -> Result<Self, VocabularyError> {
        let fault = |reason: String| VocabularyError::Bpe { reason };
        let mut file: Value =
            serde_json::from_str(text).map_err(|error| fault(error.to_string()))?;
        let kind = file["model"]["type"].as_str().unwrap_or("none").to_owned();
        if kind != "BPE" {
            return Err(fault(format!("the model's type is {kind:?}")));
        }
        check_merges(&file["model"])?;
        check_rewriting(&file)?;
        let ids = ids(&file);
        let unk = unknown_token(&file)?;
        let names = rules.special.unwrap_or(SpecialNames { unk, ..BERT });
        let special = names.ids(|name| ids.get(name).copied())?;
        check_added(&file)?;
        check_around(&file, &names, &special)?;
        let alphabet = rules.alphabet.unwrap_or(Alphabet::Dna);
        let size = ids.values().max().map_or(0, |&id| id as usize + 1);

        // What is switched off, and what this module does itself.
        for key in ["truncation", "padding", "post_processor", "decoder"] {
            file[key] = Value::Null;
        }
        file["model"]["dropout"] = Value::Null;
        file["added_tokens"] = Value::Array(Vec::new());
        let library: Library = file
            .to_string()
            .parse()
            .map_err(|error: tokenizers::Error| fault(error.to_string()))?;

        let mut read = [0; 256];
        for (byte, to) in (0..=u8::MAX).zip(&mut read) {
            *to = match rules.letters.apply(byte).to_ascii_uppercase() {
                b'U' if alphabet == Alphabet::Dna && !ids.contains_key("U") => b'T',
                // A sign that is neither part of a word nor a space, and in no vocabulary.
                0x80.. => 0x1a,
                other => other,
            };
        }
        let fast = match library.get_model() {
            ModelWrapper::BPE(model) => Fast::new(&file, model, &read),
            _ => None,
        };
        Ok(Self {
            library,
            special,
            alphabet,
            size,
            read,
            fast,
        })
    }

    /// Whether the ids come from [`Merges`] and not from the library.
    #[must_use]
    pub fn is_fast(&self) -> bool {
        self.fast.is_some()
    }

    /// The ids as the library gives them, much slower than [`Tokenizer::encode`]: what that is held against.
    #[must_use]
    pub fn encode_by_library(&self, sequence: &[u8]) -> Encoded {
        let text: String = sequence
            .iter()
            .map(|&byte| char::from(self.read[usize::from(byte)]))
            .collect();
        // The file has been loaded, and holds its unknown token: no text makes the library fail.
        let Ok(encoding) = self.library.encode(text.as_str(), false) else {
            return Encoded::default();
        };
        let starts = encoding.get_offsets().iter();
        self.finish(
            sequence,
            encoding.get_ids().to_vec(),
            starts.map(|&(start, _)| position(start)).collect(),
        )
    }

    fn finish(&self, sequence: &[u8], ids: Vec<u32>, starts: Vec<u32>) -> Encoded {
        let unk = self.special.unk;
        let unknown = ids.iter().filter(|&&id| id == unk).count();
        let first_unknown = (unknown > 0)
            .then(|| ids.iter().position(|&id| id == unk))
            .flatten();
        Encoded {
            letters: sequence.len(),
            unknown,
            first_unknown: first_unknown.map(|at| starts[at] as usize),
            dropped_stop: false,
            ids,
            starts: Some(starts),
        }
    }
}

impl Tokenizer for BpeTokenizer {
    fn encode(&self, sequence: &[u8]) -> Encoded {
        let encoded = self.fast.as_ref().and_then(|fast| fast.encode(sequence));
        match encoded {
            Some((ids, starts)) => self.finish(sequence, ids, starts),
            None => self.encode_by_library(sequence),
        }
    }

    fn special(&self) -> &SpecialTokens {
        &self.special
    }

    fn alphabet(&self) -> Alphabet {
        self.alphabet
    }

    fn vocabulary(&self) -> usize {
        self.size
    }
}

/// Checks what the library takes for granted of merges, and panics without: that both parts and what they make are tokens, and that
/// the right part begins with the prefix of tokens that continue a word.
fn check_merges(model: &Value) -> Result<(), VocabularyError> {
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or("");
    let known = |token: &str| model["vocab"].get(token).is_some();
    let fault = |number: usize, what: String| {
        Err(VocabularyError::Bpe {
            reason: format!("merge {number} {what}"),
        })
    };
    let mut made = String::new();
    for (number, merge) in (1..).zip(model["merges"].as_array().into_iter().flatten()) {
        let pair = match merge {
            // The first line of a merges.txt.
            Value::String(text) if text.starts_with("#version") => continue,
            Value::String(text) => text.split_once(' '),
            pair => pair[0].as_str().zip(pair[1].as_str()),
        };
        let Some((left, right)) = pair else {
            return fault(number, "is not a pair of tokens".to_owned());
        };
        let Some(rest) = right.strip_prefix(prefix) else {
            return fault(
                number,
                format!(
                    "has {right:?} on its right, which does not begin with continuing_subword_prefix {prefix:?}"
                ),
            );
        };
        made.clear();
        made.extend([left, rest]);
        for token in [left, right, &made] {
            if !known(token) {
                return fault(
                    number,
                    format!("needs the token {token:?}, which is not in the vocabulary"),
                );
            }
        }
    }
    Ok(())
}

/// Refuses what could make a short sequence as long as it likes, or take as long: sequences are letters, and need no search and
/// replace.
fn check_rewriting(file: &Value) -> Result<(), VocabularyError> {
    let mut parts = vec![
        ("normalizer", &file["normalizer"]),
        ("pre_tokenizer", &file["pre_tokenizer"]),
    ];
    while let Some((what, part)) = parts.pop() {
        let inner = ["normalizers", "pretokenizers"]
            .into_iter()
            .filter_map(|key| part[key].as_array())
            .flatten();
        parts.extend(inner.map(|inner| (what, inner)));
        let kind = part["type"].as_str().unwrap_or("none");
        let by_pattern = kind == "Split" && !part["pattern"]["Regex"].is_null();
        if by_pattern || matches!(kind, "Replace" | "Prepend" | "Precompiled") {
            return Err(VocabularyError::Bpe {
                reason: format!("its {what} is of type {kind:?}, which is not supported"),
            });
        }
    }
    Ok(())
}

/// Refuses added tokens that the library would cut out of sequences before BPE, and those that it would give another id.
fn check_added(file: &Value) -> Result<(), VocabularyError> {
    let model = &file["model"];
    let refused = |token: &str, why: &str| {
        Err(VocabularyError::Bpe {
            reason: format!("its added_tokens have {token:?}, {why}"),
        })
    };
    let merged = |token: &str| {
        let mut merges = model["merges"].as_array().into_iter().flatten();
        merges.any(|merge| match merge {
            Value::String(pair) => pair.contains(token),
            pair => [&pair[0], &pair[1]]
                .iter()
                .any(|part| part.as_str().is_some_and(|part| part.contains(token))),
        })
    };
    for added in file["added_tokens"].as_array().into_iter().flatten() {
        let Some(token) = added["content"].as_str() else {
            continue;
        };
        let known = &model["vocab"][token];
        if !known.is_null() && *known != added["id"] {
            return refused(token, "with another id than in the vocabulary");
        }
        // What stands in brackets is in no sequence. U is read as T.
        let letters = token.trim().to_ascii_uppercase();
        let in_sequences = |byte: u8| match byte {
            b'U' => !model["vocab"]["U"].is_null() || letters == "U",
            _ => byte.is_ascii_alphabetic() || matches!(byte, b'-' | b'*' | b'.' | b'?'),
        };
        let cut_out = !letters.is_empty() && letters.bytes().all(in_sequences);
        // A letter of the vocabulary that nothing merges with has the same id either way.
        let same = token.len() == 1 && !known.is_null() && !merged(token);
        if cut_out && !same {
            return refused(
                token,
                "which would be split off before the model's own tokens; this is not supported",
            );
        }
    }
    Ok(())
}

/// Checks that the file puts the special tokens around a sequence: this module does so itself.
fn check_around(
    file: &Value,
    names: &SpecialNames,
    special: &SpecialTokens,
) -> Result<(), VocabularyError> {
    let mut parts = vec![&file["post_processor"]];
    let mut around = Vec::new();
    while let Some(part) = parts.pop() {
        match part["type"].as_str() {
            Some("Sequence") => parts.extend(part["processors"].as_array().into_iter().flatten()),
            // Changes offsets only.
            Some("ByteLevel") => {}
            _ => around.push(part),
        }
    }
    let [part] = around[..] else {
        return Err(VocabularyError::Bpe {
            reason: "its post_processor has several parts that add tokens, which is not supported"
                .to_owned(),
        });
    };
    let kind = part["type"].as_str().unwrap_or("none");
    let (front, behind) = (&special.front[..], &special.behind[..]);
    let is = match kind {
        "TemplateProcessing" => is_template(part, front, behind),
        "BertProcessing" | "RobertaProcessing" => {
            let one = |key: &str| part[key][1].as_u64();
            matches!((front, behind), ([cls], [sep])
                if one("cls") == Some((*cls).into()) && one("sep") == Some((*sep).into()))
        }
        _ => false,
    };
    if is {
        return Ok(());
    }
    let listed = |names: &[&str], ids: &[u32]| {
        let both = names.iter().zip(ids);
        let all: Vec<_> = both.map(|(name, id)| format!("{name} (id {id})")).collect();
        if all.is_empty() {
            "nothing".to_owned()
        } else {
            all.join(", ")
        }
    };
    Err(VocabularyError::Bpe {
        reason: format!(
            "its post_processor (of type {kind:?}) does not put {} before a sequence and {} behind it, \
             all of token type 0; anything else is not supported",
            listed(names.front, front),
            listed(names.behind, behind),
        ),
    })
}

/// Whether a template is these tokens, a sequence, and those tokens, all of token type 0.
fn is_template(part: &Value, front: &[u32], behind: &[u32]) -> bool {
    let is_token = |piece: &Value, id: u32| {
        let piece = &piece["SpecialToken"];
        let named = piece["id"].as_str().unwrap_or_default();
        is_zero(&piece["type_id"])
            && part["special_tokens"][named]["ids"] == serde_json::json!([id])
    };
    let are_tokens = |pieces: &[Value], ids: &[u32]| {
        let mut both = pieces.iter().zip(ids);
        pieces.len() == ids.len() && both.all(|(piece, &id)| is_token(piece, id))
    };
    let Some(pieces) = part["single"].as_array() else {
        return false;
    };
    let Some((before, [middle, after @ ..])) = pieces.split_at_checked(front.len()) else {
        return false;
    };
    are_tokens(before, front)
        && middle["Sequence"]["id"] == "A"
        && is_zero(&middle["Sequence"]["type_id"])
        && are_tokens(after, behind)
}

/// Of a token type, which is 0 if it is not given.
fn is_zero(value: &Value) -> bool {
    value.is_null() || *value == 0
}

/// Positions are 32-bit; a sequence of 4 GB would not fit any model.
fn position(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// All tokens of the file: the model's, and those added to it.
fn ids(file: &Value) -> HashMap<String, u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let model = file["model"]["vocab"].as_object().into_iter().flatten();
    let added = file["added_tokens"].as_array().into_iter().flatten();
    model
        .filter_map(|(token, value)| Some((token.clone(), id(value)?)))
        .chain(
            added.filter_map(|token| {
                Some((token["content"].as_str()?.to_owned(), id(&token["id"])?))
            }),
        )
        .collect()
}

/// The name of the file's unknown token.
fn unknown_token(file: &Value) -> Result<&str, VocabularyError> {
    file["model"]["unk_token"]
        .as_str()
        .ok_or_else(|| VocabularyError::Bpe {
            reason: "the model has no unk_token, so letters outside its vocabulary would be lost"
                .to_owned(),
        })
}

/// What a byte is to the tokenizer: a letter of the vocabulary, by its number, or one of these.
type Letter = u8;

/// A space: no token.
const SPACE: Letter = u8::MAX;

/// Outside of the vocabulary.
const UNKNOWN: Letter = u8::MAX - 1;

/// The tokenizer without the library: words, unknown letters, and [`Merges`] for what is between them.
struct Fast {
    merges: Merges,
    letters: [Letter; 256],
    /// Words are runs of bytes of one class.
    class: [u8; 256],
    unk: u32,
    fuse_unk: bool,
}

impl Fast {
    /// `None` where the file has something that only the library does.
    fn new(file: &Value, model: &BPE, read: &[u8; 256]) -> Option<Self> {
        let unset = |value: &Value| value.is_null() || *value == false || *value == "";
        let settings = &file["model"];
        if [
            "byte_fallback",
            "ignore_merges",
            "continuing_subword_prefix",
            "end_of_word_suffix",
        ]
        .iter()
        .any(|&key| !unset(&settings[key]))
            || !file["normalizer"].is_null()
        {
            return None;
        }
        let words: fn(u8) -> u8 = match (
            &file["pre_tokenizer"],
            file["pre_tokenizer"]["type"].as_str(),
        ) {
            (Value::Null, _) => |_| 1,
            (_, Some("WhitespaceSplit")) => |byte: u8| u8::from(!char::from(byte).is_whitespace()),
            (_, Some("Whitespace")) => |byte: u8| match byte {
                b'_' => 1,
                _ if byte.is_ascii_alphanumeric() => 1,
                _ if char::from(byte).is_whitespace() => 0,
                _ => 2,
            },
            _ => return None,
        };
        let unk = model
            .get_unk_token()
            .as_ref()
            .and_then(|unk| file["model"]["vocab"].get(unk))?;
        let unk = u32::try_from(unk.as_u64()?).ok()?;
        let merges = Merges::new(settings, model)?;
        // To the library an unknown letter is the unknown token from the start, and merges as that does.
        let merges_unknown =
            |&[left, right, rank]: &[u32; 3]| rank > 0 && (left == unk || right == unk);
        if merges.made.iter().any(merges_unknown) {
            return None;
        }
        let mut letters = [UNKNOWN; 256];
        let mut class = [0; 256];
        for byte in 0..256 {
            let to = read[byte];
            class[byte] = words(to);
            letters[byte] = match merges.letters.iter().position(|&letter| letter == to) {
                _ if class[byte] == 0 => SPACE,
                Some(letter) => u8::try_from(letter).ok()?,
                None => UNKNOWN,
            };
        }
        Some(Self {
            merges,
            letters,
            class,
            unk,
            fuse_unk: settings["fuse_unk"] == true,
        })
    }

    /// Ids, and where each starts. `None` only if [`Merges`] does not know a way.
    fn encode(&self, sequence: &[u8]) -> Option<(Vec<u32>, Vec<u32>)> {
        let mut tokens = Tokens::default();
        tokens.ids.reserve(sequence.len() / 4);
        tokens.starts.reserve(sequence.len() / 4);
        let mut run = Vec::with_capacity(sequence.len());
        let mut at = 0;
        while at < sequence.len() {
            let class = self.class[usize::from(sequence[at])];
            match self.letters[usize::from(sequence[at])] {
                SPACE => at += 1,
                UNKNOWN => {
                    let fused = self.fuse_unk
                        && at > 0
                        && self.letters[usize::from(sequence[at - 1])] == UNKNOWN
                        && self.class[usize::from(sequence[at - 1])] == class;
                    if !fused {
                        tokens.push(self.unk, at);
                    }
                    at += 1;
                }
                _ => {
                    run.clear();
                    let known = sequence[at..].iter().map_while(|&byte| {
                        let letter = self.letters[usize::from(byte)];
                        (letter < UNKNOWN && self.class[usize::from(byte)] == class)
                            .then_some(letter)
                    });
                    run.extend(known);
                    self.merges.encode(&run, at, &mut tokens)?;
                    at += run.len();
                }
            }
        }
        Some((tokens.ids, tokens.starts))
    }
}

/// Ids and starts of the tokens so far.
#[derive(Default)]
struct Tokens {
    ids: Vec<u32>,
    starts: Vec<u32>,
}

impl Tokens {
    fn push(&mut self, id: u32, at: usize) {
        self.ids.push(id);
        self.starts.push(position(at));
    }
}

/// A larger tree is left to the library. That of 65,536 tokens of DNA, each 16 bases long, would take half of it.
const MOST_SLOTS: usize = 1 << 23;

/// No token.
const NONE: u32 = u32::MAX;

/// Byte-pair encoding without a queue, in time linear in the sequence.
///
/// BPE merges the pair of lowest rank, the first of several, until no pair is left. What happens to a stretch of letters
/// until something merges across its border is what would happen to it alone. So tokens that each encode to themselves
/// are the encoding of their sequence exactly when each two neighbours, alone, encode to these two: only one way to cut a
/// sequence is like that. It is found from left to right: the longest token that fits its left neighbour, else the next
/// shorter one; where none fits, the left neighbour was wrong, and its end is never tried again.
///
/// Whether two tokens encode to themselves side by side is told by undoing their merges, the latest first, and looking
/// at each step for a merge across the border that would have come before the one just undone. This needs each token to
/// come from one merge, of a higher rank than those of its parts: so it is in what BPE's training makes.
struct Merges {
    /// The vocabulary's single letters.
    letters: Vec<u8>,
    /// Tree of all tokens that encode to themselves: for each node and letter, the first child slot of the next node, or 0.
    children: Vec<u32>,
    /// The token that ends at a node, or [`NONE`]; by child slot over the number of letters.
    token: Vec<u32>,
    /// For each token, the next shorter one that it begins with, or [`NONE`].
    shorter: Vec<u32>,
    /// For each token: how many letters.
    length: Vec<u32>,
    /// For each token: its left and right part (itself for a letter), and its merge's rank plus 1 (0 for a letter).
    made: Vec<[u32; 3]>,
    /// Ranks plus 1 of pairs.
    pairs: Pairs,
}

impl Merges {
    /// `None` where the merges are not such as the method needs.
    fn new(settings: &Value, model: &BPE) -> Option<Self> {
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

    /// Appends the tokens of a run of letters that starts at `offset` of its sequence. `None` if there is no way to cut
    /// it, which can't be: then the library has to do it.
    fn encode(&self, run: &[Letter], offset: usize, tokens: &mut Tokens) -> Option<()> {
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

    /// The longest token that a run begins with, or [`NONE`].
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
            // Of one rank the left one came first, as does a merge across the border before the right one.
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
    /// Pair, and rank. A free place has the rank of what is no pair.
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

    /// `u32::MAX` for what is no pair.
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
