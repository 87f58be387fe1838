//! Checks that a `tokenizer.json` has only features for which this crate gives the correct ids;
//! everything else is refused.

use std::collections::HashMap;

use serde_json::Value;

use super::error::VocabularyError;
use super::special::{SpecialNames, SpecialTokens};

/// Checks what the library takes for granted of merges, and panics without: that both parts and
/// what they make are tokens, and that the right part begins with the prefix of tokens that
/// continue a word.
///
/// # Errors
/// If a merge is invalid; the error names it.
pub fn check_merges(model: &Value) -> Result<(), VocabularyError> {
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

/// Refuses what could make a short sequence as long as it likes, or take as long: sequences are
/// letters, and need no search and replace.
///
/// # Errors
/// If a part is not supported; the error names it.
pub fn check_rewriting(file: &Value) -> Result<(), VocabularyError> {
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

/// Refuses added tokens that the library would split off before BPE, or to which it would give
/// another id.
///
/// # Errors
/// If a token is not supported; the error names it.
pub fn check_added(file: &Value) -> Result<(), VocabularyError> {
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

/// Checks that the file puts the special tokens around a sequence: the tokenizer does so itself.
///
/// # Errors
/// What the file does instead.
pub fn check_around(
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

/// Removes the token of no letters, and merges with it: GROVER's file has them. Nothing is ever
/// encoded as it, and the model has no row for it.
pub fn drop_empty_token(file: &mut Value) {
    let model = &mut file["model"];
    let Some(vocabulary) = model["vocab"].as_object_mut() else {
        return;
    };
    if vocabulary.remove("").is_none() {
        return;
    }
    if let Some(merges) = model["merges"].as_array_mut() {
        merges.retain(|merge| match merge {
            Value::String(pair) => pair
                .split_once(' ')
                .is_none_or(|(left, right)| !left.is_empty() && !right.is_empty()),
            pair => pair[0] != "" && pair[1] != "",
        });
    }
}

/// All tokens of the file: the model's, and those added to it.
pub fn ids(file: &Value) -> HashMap<String, u32> {
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
///
/// # Errors
/// When there is none.
pub fn unknown_token(file: &Value) -> Result<&str, VocabularyError> {
    file["model"]["unk_token"]
        .as_str()
        .ok_or_else(|| VocabularyError::Bpe {
            reason: "the model has no unk_token, so letters outside its vocabulary would be lost"
                .to_owned(),
        })
}
