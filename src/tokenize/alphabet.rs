//! Amino acids or nucleotides.

/// The alphabet of sequences.
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

    /// The default limit on the length of a record. The longest known protein has about 45,000
    /// residues, the longest human chromosome 249 million bases. Anything longer is most likely
    /// many records that lost their headers.
    #[must_use]
    pub fn longest_record(self) -> u64 {
        match self {
            Self::Protein => 10_000_000,
            Self::Dna => 300_000_000,
        }
    }
}

impl From<seqembed_onnx::Alphabet> for Alphabet {
    fn from(alphabet: seqembed_onnx::Alphabet) -> Self {
        match alphabet {
            seqembed_onnx::Alphabet::Protein => Self::Protein,
            seqembed_onnx::Alphabet::Dna => Self::Dna,
        }
    }
}
