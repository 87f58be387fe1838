//! Which files an earlier run finished, found out without writing or locking anything.

use std::io::{self, Read as _};
use std::path::Path;

use rayon::prelude::*;

use super::error::{JournalError, cannot};
use super::{FILES, FOLDER, LOG, Past, Request, are_as_written, difference, log, ordinary};

/// For each file, whether a run with `--resume` would keep it: its output, here or in the cache, is
/// as it was written, of the same input, model and options.
///
/// # Errors
/// If the journal exists and cannot be read.
pub fn finished(
    out: &Path,
    cache: Option<&Path>,
    requests: &[Request],
) -> Result<Vec<bool>, JournalError> {
    let path = cache
        .map_or_else(|| out.join(FOLDER), Path::to_owned)
        .join(LOG);
    let mut text = Vec::new();
    match ordinary::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => {
            other
                .and_then(|mut log| log.read_to_end(&mut text))
                .map_err(cannot("read", &path))?;
        }
    }
    if text.is_empty() {
        return Ok(vec![false; requests.len()]);
    }
    let (past, _) = Past::of(log::parse(&text).0);
    let files = cache.map(|cache| cache.join(FILES));
    let is_kept = |request: &Request| {
        let Some(done) = past.done.get(request.sample) else {
            return false;
        };
        let facts = past.facts.get(&done.facts);
        let here = request.output.parent().unwrap_or(Path::new(""));
        facts.is_some_and(|facts| difference(request, facts, done).is_none())
            && [Some(here), files.as_deref()]
                .into_iter()
                .flatten()
                .any(|folder| are_as_written(folder, &done.files).is_ok())
    };
    Ok(requests.par_iter().map(is_kept).collect())
}
