//! DNA or protein? And the other strand.

use super::alphabet::Alphabet;

/// Minimum number of letters to conclude that a file contains DNA.
const ENOUGH: u64 = 60;

/// Minimum number of letters to conclude that it contains proteins, a third of whose letters are
/// specific to them.
const ENOUGH_PROTEIN: u64 = 20;

/// More letters than this need not be looked at.
const PLENTY: u64 = 100_000;

/// Counts over the first records of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DnaCheck {
    letters: u64,
    bases: u64,
    amino_acids: u64,
    /// Letters in upper and in lower case.
    upper: u64,
    lower: u64,
    /// Sequences with `#`, a residue or structure that is not known.
    hashes: u64,
}

impl DnaCheck {
    /// Looks at one more sequence, until enough was seen.
    pub fn add(&mut self, sequence: &[u8]) {
        if self.is_done() {
            return;
        }
        self.hashes += u64::from(sequence.contains(&b'#'));
        for byte in sequence.iter().filter(|byte| byte.is_ascii_alphabetic()) {
            if self.letters >= PLENTY {
                return;
            }
            let letter = byte.to_ascii_uppercase();
            self.letters += 1;
            self.upper += u64::from(byte.is_ascii_uppercase());
            self.lower += u64::from(byte.is_ascii_lowercase());
            self.bases += u64::from(b"ACGTUN".contains(&letter));
            self.amino_acids += u64::from(b"EFILPQ".contains(&letter));
        }
    }

    /// Whether more letters would not change the verdict.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.letters >= PLENTY
    }

    /// Whether at least 95 % of the letters, and of 60 letters or more, are A, C, G, T, U or N.
    #[must_use]
    pub fn looks_like_dna(&self) -> bool {
        self.letters >= ENOUGH && self.bases * 100 >= self.letters * 95
    }

    /// Whether there are at least 20 letters, of which at least 10 % are E, F, I, L, P or Q, which
    /// represent amino acids but no nucleotide, not even an ambiguous one.
    #[must_use]
    pub fn looks_like_protein(&self) -> bool {
        self.letters >= ENOUGH_PROTEIN && self.amino_acids * 10 >= self.letters
    }

    /// Why these sequences look like no pairs of a residue and its structure, if they do: there are
    /// at least 20 letters, all of them of one case, and no `#`.
    #[must_use]
    pub fn why_no_pairs(&self) -> Option<String> {
        let of_one_case = self.upper == 0 || self.lower == 0;
        (self.letters >= ENOUGH_PROTEIN && of_one_case && self.hashes == 0).then(|| {
            format!(
                "looks like residues without structures (its first {} letters are all of one case, \
                 and none is #)",
                self.letters
            )
        })
    }

    /// Why these sequences look like something else than a model is for, if they do.
    #[must_use]
    pub fn why_not(&self, alphabet: Alphabet) -> Option<String> {
        let percent = |count: u64| count as f64 * 100.0 / self.letters as f64;
        let letters = self.letters;
        match alphabet {
            Alphabet::Protein if self.looks_like_dna() => Some(format!(
                "looks like DNA ({:.0} % of its first {letters} letters are A, C, G, T, U or N)",
                percent(self.bases)
            )),
            Alphabet::Dna if self.looks_like_protein() => Some(format!(
                "looks like protein ({:.0} % of its first {letters} letters are E, F, I, L, P or \
                 Q, which are not nucleotide codes)",
                percent(self.amino_acids)
            )),
            _ => None,
        }
    }
}

/// The same for one sequence.
#[must_use]
pub fn looks_like_dna(sequence: &[u8]) -> bool {
    let mut check = DnaCheck::default();
    check.add(sequence);
    check.looks_like_dna()
}

/// The same for one sequence.
#[must_use]
pub fn looks_like_protein(sequence: &[u8]) -> bool {
    let mut check = DnaCheck::default();
    check.add(sequence);
    check.looks_like_protein()
}

/// The other strand, read from its 5' end: IUPAC's ambiguous codes too (R and Y, K and M, B and V,
/// D and H; S, W and N are their own), in each letter's case. The complement of U is A, and that of
/// A is T. Anything else stays.
#[must_use]
pub fn reverse_complement(sequence: &[u8]) -> Vec<u8> {
    sequence
        .iter()
        .rev()
        .map(|&byte| COMPLEMENTS[usize::from(byte)])
        .collect()
}

const COMPLEMENTS: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte: u8 = 0;
    loop {
        table[byte as usize] = match byte.to_ascii_uppercase() {
            b'A' => b'T',
            b'C' => b'G',
            b'G' => b'C',
            b'T' | b'U' => b'A',
            b'R' => b'Y',
            b'Y' => b'R',
            b'K' => b'M',
            b'M' => b'K',
            b'B' => b'V',
            b'V' => b'B',
            b'D' => b'H',
            b'H' => b'D',
            other => other,
        };
        // The bit that is the case of an ASCII letter; other bytes are unchanged.
        table[byte as usize] |= byte & 0x20;
        if byte == u8::MAX {
            break;
        }
        byte += 1;
    }
    table
};
