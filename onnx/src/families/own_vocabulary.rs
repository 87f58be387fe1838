//! The vocabulary of families whose models all share one.

use crate::shown;

/// Checks that the text of a `vocab.txt` starts with the tokens `own`, one per line, in this order.
///
/// # Errors
/// Names the family and the first token that differs.
pub fn check<'own>(
    family: &str,
    own: impl IntoIterator<Item = &'own str>,
    text: &str,
) -> Result<(), String> {
    let mut lines = text.lines().map(str::trim);
    for (id, own) in own.into_iter().enumerate() {
        let found = lines.next().unwrap_or("");
        if found != own {
            return Err(format!(
                "the vocabulary is not that of {family}: the token with id {id} is \"{}\", not \"{own}\"",
                shown::name(found)
            ));
        }
    }
    Ok(())
}
