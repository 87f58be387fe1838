//! All k-mers of DNA, in the order of the vocabularies of DNABERT and Nucleotide Transformer.

/// The order of bases in these vocabularies.
pub const BASES: [char; 4] = ['A', 'T', 'C', 'G'];

/// All k-mers of [`BASES`], of which the last base changes fastest.
pub fn kmers(k: u32) -> impl Iterator<Item = String> {
    let base = |number: usize, place: u32| BASES[number >> (2 * place) & 3];
    (0..4_usize.pow(k)).map(move |number| (0..k).rev().map(|place| base(number, place)).collect())
}
