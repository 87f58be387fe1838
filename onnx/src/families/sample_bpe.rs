//! A tokenizer to go with random weights of DNABERT-2's shape: byte-pair encoding of DNABERT-2's
//! kind, trained on random bases. Its tokens are nearly as long as the published one's (4.2 bases
//! of a virus against 4.8).

use serde_json::{Map, Value, json};

use crate::weights::random::split_mix;

/// The first ids, as in the published tokenizer.
const SPECIALS: [&str; 5] = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"];
/// The ids that follow.
const LETTERS: [&str; 4] = ["A", "C", "G", "T"];
/// How many bases it is trained on.
const BASES: usize = 60_000;

/// A `tokenizer.json` with a vocabulary of at most this size; always the same bytes.
#[must_use]
pub fn sample_bpe(vocabulary: usize) -> Vec<u8> {
    let mut tokens: Vec<String> = LETTERS.map(str::to_owned).to_vec();
    let mut merges = Vec::new();
    let mut state = 0;
    let mut sequence: Vec<usize> = (0..BASES)
        .map(|_| usize::from(split_mix(&mut state).to_le_bytes()[0] & 3))
        .collect();
    let room = vocabulary.saturating_sub(SPECIALS.len());
    let mut counts = vec![0_u32; room.max(LETTERS.len()).pow(2)];
    while tokens.len() < room {
        let pair = |two: &[usize]| two[0] * room + two[1];
        for two in sequence.windows(2) {
            counts[pair(two)] += 1;
        }
        // The most frequent pair, the first in the order of ids where there are several.
        let best = sequence
            .windows(2)
            .max_by_key(|two| (counts[pair(two)], std::cmp::Reverse(pair(two))))
            .map(|two| [two[0], two[1]]);
        for two in sequence.windows(2) {
            counts[pair(two)] = 0;
        }
        let Some([left, right]) = best else { break };
        merges.push(format!("{} {}", tokens[left], tokens[right]));
        let made = tokens.len();
        tokens.push(format!("{}{}", tokens[left], tokens[right]));
        let mut next = Vec::with_capacity(sequence.len());
        for &token in &sequence {
            if token == right && next.last() == Some(&left) {
                next.pop();
                next.push(made);
            } else {
                next.push(token);
            }
        }
        sequence = next;
    }
    file(&tokens, &merges)
}

fn file(tokens: &[String], merges: &[String]) -> Vec<u8> {
    let tokens = SPECIALS
        .into_iter()
        .chain(tokens.iter().map(String::as_str));
    let ids: Map<String, Value> = tokens
        .zip(0..)
        .map(|(token, id)| (token.to_owned(), json!(id)))
        .collect();
    let special = |token: &str| json!({"id": token, "ids": [ids[token]], "tokens": [token]});
    let piece = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let sequence = |name: &str, kind: u8| json!({"Sequence": {"id": name, "type_id": kind}});
    let added: Vec<Value> = (0..)
        .zip(SPECIALS)
        .map(|(id, token): (u32, &str)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [piece("[CLS]"), sequence("A", 0), piece("[SEP]")],
            "pair": [sequence("A", 0), sequence("B", 1)],
            "special_tokens": {"[CLS]": special("[CLS]"), "[SEP]": special("[SEP]")},
        },
        "decoder": null,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "vocab": ids,
            "merges": merges,
        },
    })
    .to_string()
    .into_bytes()
}
