//! Vocabularies as `SentencePiece` writes them (Kudo and Richardson, 2018), in its own
//! `spiece.model` or as the unigram model of a `tokenizer.json`, as a text with one token per line.
//! Sequences are written to such tokenizers with a space between residues, so that a residue is one
//! piece with a mark for the space before it, which is left out here.

use std::path::Path;

use prost::Message;
use serde_json::Value;

use crate::error::Error;

/// Stands for a space in a piece.
const SPACE: char = '\u{2581}';

/// The file of `SentencePiece`: only the pieces are read.
#[derive(Clone, PartialEq, Message)]
struct PieceModel {
    /// The pieces, in the order of their ids.
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
}

/// A piece of the vocabulary.
#[derive(Clone, PartialEq, Eq, Message)]
struct Piece {
    /// Its text.
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
}

/// Whether a tokenizer's file is one of `SentencePiece`, by its name: others are text already.
#[must_use]
pub fn is_named_so(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("model" | "json"))
}

/// The vocabulary of a file, a token a line in the order of the ids. `more` are the tokens that a
/// model has without pieces, from its number of tokens on.
///
/// # Errors
/// [`Error::Config`] if it is not of `SentencePiece`, or has more pieces than `rows`.
pub fn vocabulary(
    path: &Path,
    file: &[u8],
    rows: usize,
    more: &[String],
) -> Result<Vec<u8>, Error> {
    let json = path
        .extension()
        .is_some_and(|extension| extension == "json");
    let mut tokens = if json {
        unigrams(path, file)?
    } else {
        pieces(path, file)?
    };
    if tokens.len() > rows {
        return Err(Error::config(
            path,
            format!(
                "it has {} pieces, but the model has {rows} tokens: the tokenizer and the weights \
                 are not from the same model",
                tokens.len()
            ),
        ));
    }
    tokens.resize(rows, None);
    let marked = |token: &str| token.strip_prefix(SPACE).map(str::to_owned);
    let residues: std::collections::HashSet<String> = tokens
        .iter()
        .flatten()
        .filter_map(|token| marked(token))
        .collect();
    let lines = tokens.iter().enumerate().map(|(id, token)| {
        let known = match token {
            // Inside of a word no residue is ever written.
            Some(token) if residues.contains(token) => None,
            Some(token) => Some(marked(token).unwrap_or_else(|| token.clone())),
            None => more.get(id).cloned(),
        };
        // Nothing is read as such a token.
        let known = known.filter(|token| !token.trim().is_empty() && !token.contains('\n'));
        known.unwrap_or_else(|| format!("<unused_{id}>")) + "\n"
    });
    Ok(lines.collect::<String>().into_bytes())
}

fn pieces(path: &Path, file: &[u8]) -> Result<Vec<Option<String>>, Error> {
    let model = PieceModel::decode(file)
        .map_err(|why| Error::config(path, format!("it is not a model of SentencePiece: {why}")))?;
    if model.pieces.is_empty() {
        return Err(Error::config(
            path,
            "it is a model of SentencePiece without pieces",
        ));
    }
    Ok(model.pieces.into_iter().map(|piece| piece.text).collect())
}

fn unigrams(path: &Path, file: &[u8]) -> Result<Vec<Option<String>>, Error> {
    /// More than any vocabulary of residues has, so that no id asks for much memory.
    const MOST: usize = 1 << 20;
    let json: Value = serde_json::from_slice(file).map_err(Error::json(path))?;
    let kind = json.pointer("/model/type").and_then(Value::as_str);
    let vocabulary = json.pointer("/model/vocab").and_then(Value::as_array);
    let (Some("Unigram") | None, Some(vocabulary)) = (kind, vocabulary) else {
        return Err(Error::config(
            path,
            format!(
                "it is not a unigram tokenizer (its model is {})",
                kind.unwrap_or("missing")
            ),
        ));
    };
    let text = |piece: &Value| piece.get(0).and_then(Value::as_str).map(str::to_owned);
    let mut tokens: Vec<Option<String>> = vocabulary.iter().map(text).collect();
    let added = json.get("added_tokens").and_then(Value::as_array);
    for token in added.into_iter().flatten() {
        let id = token.get("id").and_then(Value::as_u64);
        let id = id
            .and_then(|id| usize::try_from(id).ok())
            .filter(|&id| id < MOST);
        let content = token.get("content").and_then(Value::as_str);
        let (Some(id), Some(content)) = (id, content) else {
            return Err(Error::config(
                path,
                format!("an added token is {token}, without id and text"),
            ));
        };
        if tokens.len() <= id {
            tokens.resize(id + 1, None);
        }
        tokens[id] = Some(content.to_owned());
    }
    Ok(tokens)
}
