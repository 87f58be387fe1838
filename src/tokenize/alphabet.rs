//! Amino acids or nucleotides.

/// What sequences are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alphabet {
    /// Amino acids.
    Protein,
    /// Nucleotides.
    Dna,
}

impl Alphabet {
    /// What its letters are called, and what lengths and windows count.
    #[must_use]
    pub fn units(self) -> &'static str {
        match self {
            Self::Protein => "residues",
            Self::Dna => "bases",
        }
    }

    /// The longest record that is read unless the user says otherwise: the longest protein known
    /// has some 45,000 residues, the longest human chromosome 249 million bases. What is longer
    /// most likely is many records whose headers were lost.
    #[must_use]
    pub fn longest_record(self) -> u64 {
        match self {
            Self::Protein => 10_000_000,
            Self::Dna => 300_000_000,
        }
    }
}
