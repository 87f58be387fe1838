//! DNABERT-2's and DNABERT-S's vocabulary: byte-pair encoding, from the model's own
//! `tokenizer.json`.
//!
//! The rule: letters are taken in upper case, U as T (unless the vocabulary has U); then the ids
//! are those that the `tokenizers` library gives. A letter outside of the vocabulary, N and the
//! other ambiguous codes as a rule, is one unknown token (a run of them is one, where the file says
//! `fuse_unk`), and no token reaches over it. Truncation and padding that the file has switched on
//! are switched off, as transformers does unless a call asks for them; so is dropout, which makes
//! ids random. Names of special tokens in a sequence are letters like any others, and a byte that
//! is not ASCII is one unknown token. A file whose other parts would give other ids is refused:
//! tokens added that are cut out of sequences first, and anything around a sequence but one [CLS]
//! and one [SEP].
//!
//! The library keeps a priority queue over the whole sequence, for DNA has no spaces: about 2 MB of
//! bases a second. For the files of these models [`Merges`] gives the same ids many times faster;
//! with any other the library does the work.

use serde_json::Value;
use tokenizers::Tokenizer as Library;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;

use super::alphabet::Alphabet;
use super::bpe_file::{
    check_added, check_around, check_merges, check_rewriting, drop_empty_token, ids, unknown_token,
};
use super::bpe_merges::{Letter, Merges, SPACE, Tokens, UNKNOWN, position};
use super::encoded::{Encoded, unknown_tokens};
use super::error::VocabularyError;
use super::family_rules::FamilyRules;
use super::special::{self, BERT, SpecialNames, SpecialTokens};
use super::tokenizer::Tokenizer;

/// A `tokenizer.json` at work.
pub struct BpeTokenizer {
    library: Library,
    special: SpecialTokens,
    alphabet: Alphabet,
    size: usize,
    letters_per_token: Option<usize>,
    /// What the library is given for each byte of a sequence.
    read: [u8; 256],
    fast: Option<Fast>,
}

impl BpeTokenizer {
    /// From the file's text.
    ///
    /// # Errors
    /// If it is not a BPE tokenizer, or lacks a special token.
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
        drop_empty_token(&mut file);
        check_merges(&file["model"])?;
        check_rewriting(&file)?;
        let ids = ids(&file);
        let unk = unknown_token(&file)?;
        let names = rules.special.unwrap_or(SpecialNames { unk, ..BERT });
        let special = special::ids(&names, |name| ids.get(name).copied())?;
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
            letters_per_token: rules.letters_per_token,
            read,
            fast,
        })
    }

    /// Whether the ids come from [`Merges`] and not from the library.
    #[must_use]
    pub fn is_fast(&self) -> bool {
        self.fast.is_some()
    }

    /// The ids computed by the library, much slower than [`Tokenizer::encode`]; used as the
    /// reference in tests.
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
        let (unknown, first_unknown) = unknown_tokens(&ids, unk);
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

    fn letters_per_token(&self) -> Option<usize> {
        self.letters_per_token
    }
}

/// The tokenizer without the library: words, unknown letters, and [`Merges`] for what is between
/// them.
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
        // To the library an unknown letter is the unknown token from the start, and merges as that
        // does.
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
