//! The six reading frames of a chunk, and which of them are kept.

/// A reading frame without a stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// `F1` to `F3`, and `R1` to `R3` on the other strand: it follows the chunk's id.
    pub name: &'static str,
    /// What is embedded of the strand: from the frame's first base on, one base more than the
    /// codons that were translated have, where the strand has one. Codons that are none are not
    /// translated, so that it ends early by as much.
    pub nucleotides: Vec<u8>,
    /// The codons, translated.
    pub protein: Vec<u8>,
}

const NAMES: [&str; 6] = ["F1", "F2", "F3", "R1", "R2", "R3"];

/// The frames of a sequence (in any case) that have a residue and no stop, in the order of their
/// names.
#[must_use]
pub fn frames(sequence: &[u8]) -> Vec<Frame> {
    let forward = sequence.to_ascii_uppercase();
    let reverse = reverse_complement(&forward);
    NAMES
        .into_iter()
        .enumerate()
        .filter_map(|(at, name)| {
            let strand = if at < 3 { &forward } else { &reverse };
            let strand = strand.get(at % 3..)?;
            let (codons, _) = strand.as_chunks::<3>();
            let protein: Vec<u8> = codons.iter().copied().filter_map(translate).collect();
            if protein.is_empty() || protein.contains(&b'*') {
                return None;
            }
            let end = (3 * protein.len() + 1).min(strand.len());
            Some(Frame {
                name,
                nucleotides: strand[..end].to_vec(),
                protein,
            })
        })
        .collect()
}

/// The other strand. What is not one of the four bases stays as it is.
fn reverse_complement(sequence: &[u8]) -> Vec<u8> {
    let complement = |base: &u8| match base {
        b'A' => b'T',
        b'C' => b'G',
        b'G' => b'C',
        b'T' => b'A',
        other => *other,
    };
    sequence.iter().rev().map(complement).collect()
}

/// A codon by the standard code, `*` for a stop; `None` where it is not three of the four bases.
fn translate(codon: [u8; 3]) -> Option<u8> {
    /// The code's table as NCBI prints it (number 1): the bases in the order T, C, A, G, the first
    /// the slowest.
    const CODE: &[u8; 64] = b"FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG";
    codon
        .into_iter()
        .try_fold(0, |index, base| {
            let digit = b"TCAG".iter().position(|known| *known == base)?;
            Some(4 * index + digit)
        })
        .map(|index| CODE[index])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(sequence: &str) -> Vec<(&'static str, String, String)> {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("ASCII goes in");
        frames(sequence.as_bytes())
            .into_iter()
            .map(|frame| (frame.name, text(frame.nucleotides), text(frame.protein)))
            .collect()
    }

    fn frame(
        name: &'static str,
        nucleotides: &str,
        protein: &str,
    ) -> (&'static str, String, String) {
        (name, nucleotides.into(), protein.into())
    }

    #[test]
    fn frames_with_a_stop_or_without_a_residue_are_left_out() {
        // F2 is TGA, a stop; the other strand is GTCAT.
        assert_eq!(
            told("atgac"),
            [
                frame("F1", "ATGA", "M"),
                frame("F3", "GAC", "D"),
                frame("R1", "GTCA", "V"),
                frame("R2", "TCAT", "S"),
                frame("R3", "CAT", "H"),
            ]
        );
        assert_eq!(told("AC"), []);
        assert_eq!(told(""), []);
        assert_eq!(told("NNNNNNNN"), []);
    }

    /// A codon that is none is dropped, and the slice of the strand ends three bases early for it.
    #[test]
    fn codons_with_other_letters_are_dropped() {
        assert_eq!(told("GCANCATGG")[0], frame("F1", "GCANCAT", "AW"));
    }

    proptest! {
        #[test]
        fn frames_are_translations_of_their_own_bases(sequence in "[ACGTNacgt]{0,90}") {
            let frames = frames(sequence.as_bytes());
            let names: Vec<_> = frames.iter().map(|frame| frame.name).collect();
            prop_assert!(names.is_sorted());
            for frame in &frames {
                prop_assert!(!frame.protein.is_empty() && !frame.protein.contains(&b'*'));
                prop_assert!(frame.nucleotides.len() <= 3 * frame.protein.len() + 1);
                prop_assert!(frame.nucleotides.len() >= 3 * frame.protein.len());
                if !frame.nucleotides.contains(&b'N') && !sequence.to_ascii_uppercase().contains('N') {
                    let (codons, _) = frame.nucleotides.as_chunks();
                    let again: Vec<u8> = codons.iter().copied().filter_map(translate).collect();
                    prop_assert_eq!(&again, &frame.protein);
                }
            }
        }

        #[test]
        fn the_other_strand_has_the_other_frames(sequence in "[ACGT]{0,60}") {
            let other = reverse_complement(sequence.as_bytes());
            let mut turned = frames(&other);
            let forward = turned.iter().filter(|frame| frame.name.starts_with('F')).count();
            turned.rotate_left(forward);
            let plain = frames(sequence.as_bytes());
            prop_assert_eq!(plain.len(), turned.len());
            for (a, b) in plain.iter().zip(&turned) {
                prop_assert_eq!(&a.protein, &b.protein);
                prop_assert_eq!(&a.nucleotides, &b.nucleotides);
                prop_assert_eq!(&a.name[1..], &b.name[1..]);
            }
            prop_assert_eq!(reverse_complement(&other), sequence.into_bytes());
        }
    }
}
