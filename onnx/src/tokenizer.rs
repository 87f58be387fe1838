//! The tokenizer file of a checkpoint: its kind, its location, and whether it matches the weights.
//! Tokenizing is done elsewhere.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::files::read_small;
use crate::sentence_piece;
use crate::shown;

/// A line or two for each token; the largest vocabulary of DNA has 65,536.
const LONGEST: u64 = 16 << 20;

/// How sequences become tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerKind {
    /// One token a residue, from `vocab.txt`, with ESM's special tokens. Model folders call it
    /// `esm2`.
    #[serde(rename = "esm2")]
    Esm,
    /// k-mers of DNA or single letters, as listed in `vocab.txt`, with BERT's special tokens.
    Bert,
    /// Byte-pair encoding, from `tokenizer.json`.
    Bpe,
    /// k-mers of DNA that do not overlap, and single letters between them, as listed in
    /// `vocab.txt`, with `<cls>` in front and nothing behind.
    #[serde(rename = "non-overlapping-kmers")]
    NonOverlapping,
    /// Pairs of a residue and a structure, as listed in `vocab.txt`, with ESM's special tokens.
    Pairs,
}

impl TokenizerKind {
    /// The name of the tokenizer's file.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Bpe => "tokenizer.json",
            Self::Esm | Self::Bert | Self::NonOverlapping | Self::Pairs => "vocab.txt",
        }
    }
}

/// The names of a vocabulary's special tokens, each where [`SpecialTokens`] has its id.
#[derive(Debug, Clone, Copy)]
pub struct SpecialNames<'n> {
    /// In front of each sequence.
    pub front: &'n [&'n str],
    /// Behind each sequence.
    pub behind: &'n [&'n str],
    /// The one in front that stands for the whole sequence, if there is one.
    pub cls: Option<&'n str>,
    /// Fills shorter sequences up.
    pub pad: &'n str,
    /// Stands for letters that the vocabulary lacks.
    pub unk: &'n str,
}

/// Checks the text of a tokenizer's file, and says why sequences cannot be read with it.
pub type Check<'a> = dyn Fn(&[u8]) -> Result<(), String> + 'a;

/// Where to look for the tokenizer's file, and how to check it.
#[derive(Clone, Copy, Default)]
pub struct Lookup<'a> {
    /// The file that was named.
    pub named: Option<&'a Path>,
    /// The checkpoint's folder.
    pub folder: Option<&'a Path>,
    /// Says of the text of a file why sequences cannot be read with it; asked before any weights
    /// are written.
    pub check: Option<&'a Check<'a>>,
    /// Of families whose vocabulary is made by `SentencePiece`: the tokens by id that may stand
    /// behind its pieces.
    pub pieces: Option<&'a [String]>,
}

/// Reads the given file, or else the one in the folder of the checkpoint, if there is one, and
/// checks it for a model whose embedding table has `rows` rows.
///
/// # Errors
/// If the file cannot be read, is not a tokenizer file, has other tokens than the model, or does
/// not pass the check.
pub fn find(
    kind: TokenizerKind,
    rows: usize,
    lookup: &Lookup<'_>,
) -> Result<Option<Vec<u8>>, Error> {
    let files: &[&str] = match lookup.pieces {
        Some(_) => &["spiece.model", "tokenizer.json", kind.file()],
        None => &[kind.file()],
    };
    let mut places = lookup
        .folder
        .into_iter()
        .flat_map(|folder| files.iter().map(|name| folder.join(name)));
    let beside = places.find(|path| path.is_file());
    let path = match (lookup.named, &beside) {
        (Some(named), _) => named,
        (None, Some(beside)) => beside,
        _ => return Ok(None),
    };
    let mut text = read_small(path, LONGEST)?;
    if let Some(more) = lookup.pieces.filter(|_| sentence_piece::is_named_so(path)) {
        text = sentence_piece::vocabulary(path, &text, rows, more)?;
    }
    let (tokens, fits) = match kind {
        TokenizerKind::Bpe => {
            let tokens = json_tokens(path, &text)?;
            // A table is often rounded up.
            (tokens, tokens <= rows)
        }
        TokenizerKind::Esm
        | TokenizerKind::Bert
        | TokenizerKind::NonOverlapping
        | TokenizerKind::Pairs => {
            let tokens = text.trim_ascii_end().split(|byte| *byte == b'\n').count();
            (tokens, tokens == rows)
        }
    };
    if !fits {
        return Err(Error::config(
            path,
            format!(
                "it has {tokens} tokens, but the model has {rows}: \
                 the tokenizer and the weights are not from the same model"
            ),
        ));
    }
    if let Some(check) = lookup.check {
        check(&text).map_err(|why| Error::config(path, why))?;
    }
    Ok(Some(text))
}

/// Whether a folder has a `tokenizer.json` of byte pairs: others are there for other libraries,
/// beside a `vocab.txt`, and not read.
#[must_use]
pub fn has_byte_pairs(folder: Option<&Path>) -> bool {
    let Some(folder) = folder else {
        return false;
    };
    let path = folder.join(TokenizerKind::Bpe.file());
    if !path.is_file() {
        return false;
    }
    let json = read_small(&path, LONGEST).map(|text| serde_json::from_slice::<Value>(&text));
    match json {
        Ok(Ok(json)) => json.pointer("/model/type").and_then(Value::as_str) == Some("BPE"),
        // What is wrong with it is said when it is read, unless the other file is there.
        _ => !folder.join(TokenizerKind::Bert.file()).is_file(),
    }
}

/// How many ids a `tokenizer.json` needs: one more than its highest.
fn json_tokens(path: &Path, text: &[u8]) -> Result<usize, Error> {
    let json: Value = serde_json::from_slice(text).map_err(Error::json(path))?;
    let kind = json.pointer("/model/type").and_then(Value::as_str);
    let vocabulary = json.pointer("/model/vocab").and_then(Value::as_object);
    let (Some("BPE") | None, Some(vocabulary)) = (kind, vocabulary) else {
        return Err(Error::config(
            path,
            format!(
                "it is not a BPE tokenizer (its model is {})",
                shown::name(kind.unwrap_or("missing"))
            ),
        ));
    };
    let added = json
        .get("added_tokens")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    // Of no letters, a token is in no sequence: the model may have no row for it, as GROVER.
    let ids = vocabulary
        .iter()
        .filter_map(|(token, id)| (!token.is_empty()).then_some(id))
        .chain(added.filter_map(|token| token.get("id")));
    let highest = ids.filter_map(Value::as_u64).max();
    let tokens = highest.map_or(0, |id| id.saturating_add(1));
    Ok(usize::try_from(tokens).unwrap_or(usize::MAX))
}
