//! The keys of manifests, and the errors for unknown ones.

use crate::settings::{Overrides, RunOverrides};

/// The keys of the input file; `fastq` is a synonym.
pub(super) const INPUT_KEYS: [&str; 2] = ["fasta", "fastq"];

/// Options that can be given only on the command line, because they belong to one run on one
/// machine.
pub const COMMAND_LINE_ONLY: [&str; 12] = [
    "out",
    "allow_failed",
    "resume",
    "cache_dir",
    "ort_lib",
    "reload_per_file",
    "trace",
    "quiet",
    "dry_run",
    "no_measure",
    "rate",
    "json",
];

/// Where in a manifest a key occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyPosition {
    Top,
    File,
    Column,
}

/// The canonical spelling of a key (`max_length` for `max-length`) if it is one of `known`, else
/// the error message.
pub(super) fn key_among(
    key: &str,
    known: &[&'static str],
    position: KeyPosition,
) -> Result<&'static str, String> {
    let spelt = key.replace('-', "_");
    if let Some(&known) = known.iter().find(|&&known| known == spelt) {
        return Ok(known);
    }
    let option = spelt.replace('_', "-");
    if COMMAND_LINE_ONLY.contains(&spelt.as_str()) {
        return Err(format!(
            "`{spelt}` cannot be set in a manifest: give it on the command line (`--{option}`)"
        ));
    }
    if RunOverrides::KEYS.contains(&spelt.as_str()) {
        let top = if position == KeyPosition::Column {
            "at the top level of a YAML manifest"
        } else {
            "at the top level of the manifest"
        };
        return Err(format!(
            "`{spelt}` applies to the whole run: give it on the command line (`--{option}`) or \
             {top}"
        ));
    }
    let lower = spelt.to_lowercase();
    let nearest = known
        .iter()
        .map(|&known| (strsim::damerau_levenshtein(&lower, known), known))
        .min();
    let key = key.escape_debug();
    let word = if position == KeyPosition::Column {
        "column"
    } else {
        "key"
    };
    Err(match nearest {
        Some((distance, known)) if distance <= known.len().div_ceil(3) => {
            format!("unknown {word} `{key}`: did you mean `{known}`?")
        }
        _ => format!(
            "unknown {word} `{key}`: the known ones are {}",
            known.join(", ")
        ),
    })
}

/// The keys allowed in the entry of a file.
pub(super) fn entry_keys() -> Vec<&'static str> {
    let mut keys = vec!["sample"];
    keys.extend(INPUT_KEYS);
    keys.extend(Overrides::KEYS);
    keys
}
