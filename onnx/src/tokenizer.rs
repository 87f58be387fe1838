//! The tokenizer's file of a checkpoint: which it is, where it lies, and whether it fits the weights. What it means is for
//! those who read sequences with it.

use std::path::Path;

use serde_json::Value;

use crate::error::Error;
use crate::export::ExportOptions;
use crate::families::Description;
use crate::files::read_small;
use crate::shown;

/// A line or two for each token; the largest vocabulary of DNA has 65,536.
const LONGEST: u64 = 16 << 20;

/// The name of the tokenizer's file.
#[must_use]
pub fn file(description: &dyn Description) -> &'static str {
    match description.tokenizer() {
        "bpe" => "tokenizer.json",
        _ => "vocab.txt",
    }
}

/// Reads the file that was given, else the one in the checkpoint's folder, if there is one, and checks it.
///
/// # Errors
/// When the file can't be read, is none, has other tokens than the model, or does not pass [`ExportOptions::check_tokenizer`].
pub fn find(
    description: &dyn Description,
    folder: Option<&Path>,
    options: &ExportOptions,
) -> Result<Option<Vec<u8>>, Error> {
    let beside = folder.map(|folder| folder.join(file(description)));
    let path = match (options.tokenizer.as_deref(), &beside) {
        (Some(given), _) => given,
        (None, Some(beside)) if beside.is_file() => beside,
        _ => return Ok(None),
    };
    let text = read_small(path, LONGEST)?;
    let rows = description.vocabulary();
    let (tokens, fits) = if file(description) == "tokenizer.json" {
        let tokens = json_tokens(path, &text)?;
        // A table is often rounded up.
        (tokens, tokens <= rows)
    } else {
        let tokens = text.trim_ascii_end().split(|byte| *byte == b'\n').count();
        (tokens, tokens == rows)
    };
    if !fits {
        return Err(Error::config(
            path,
            format!(
                "it has {tokens} tokens, the model's embedding table has {rows} rows: tokenizer and weights are not of the \
                 same model"
            ),
        ));
    }
    if let Some(check) = options.check_tokenizer {
        check(description.tokenizer(), &text).map_err(|why| Error::config(path, why))?;
    }
    Ok(Some(text))
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
                "it is no BPE tokenizer (its model is {})",
                shown::name(kind.unwrap_or("missing"))
            ),
        ));
    };
    let added = json
        .get("added_tokens")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let ids = vocabulary
        .values()
        .chain(added.filter_map(|token| token.get("id")));
    let highest = ids.filter_map(Value::as_u64).max();
    let tokens = highest.map_or(0, |id| id.saturating_add(1));
    Ok(usize::try_from(tokens).unwrap_or(usize::MAX))
}
