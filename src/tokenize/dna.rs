//! Does a file given to a protein model hold DNA? Then the user is warned.

/// Fewer letters than this say nothing.
const ENOUGH: u64 = 60;

/// More letters than this need not be looked at.
const PLENTY: u64 = 100_000;

/// Counts over the first records of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DnaCheck {
    letters: u64,
    bases: u64,
}

impl DnaCheck {
    /// Looks at one more sequence, until enough was seen.
    pub fn add(&mut self, sequence: &[u8]) {
        for byte in sequence.iter().filter(|byte| byte.is_ascii_alphabetic()) {
            if self.letters >= PLENTY {
                return;
            }
            self.letters += 1;
            self.bases += u64::from(b"ACGTUN".contains(&byte.to_ascii_uppercase()));
        }
    }

    /// Whether at least 95 % of the letters, and of 60 letters or more, are A, C, G, T, U or N.
    #[must_use]
    pub fn looks_like_dna(&self) -> bool {
        self.letters >= ENOUGH && self.bases * 100 >= self.letters * 95
    }
}

/// The same for one sequence.
#[must_use]
pub fn looks_like_dna(sequence: &[u8]) -> bool {
    let mut check = DnaCheck::default();
    check.add(sequence);
    check.looks_like_dna()
}
