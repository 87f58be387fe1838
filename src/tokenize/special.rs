//! Special tokens: what a model wants to see in front of and behind every sequence.

pub use seqembed_onnx::SpecialNames;

use super::error::VocabularyError;

/// A model's special tokens, by their ids.
///
/// The number of special tokens around a sequence depends on the model family: ESM and BERT have
/// one in front and one at the end, Nucleotide Transformer has none at the end, T5 has none in
/// front.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// In front of each sequence, in this order: none, one or more.
    pub front: Vec<u32>,
    /// Behind each sequence, in this order: none, one or more.
    pub behind: Vec<u32>,
    /// The token in front whose vector represents the whole sequence (`<cls>`, `[CLS]`), if the
    /// model was trained with one.
    pub cls: Option<u32>,
    /// Fills shorter sequences up in a padded batch.
    pub pad: u32,
    /// The token for letters outside the vocabulary.
    pub unk: u32,
}

impl SpecialTokens {
    /// Number of special tokens around each sequence.
    #[must_use]
    pub fn count(&self) -> usize {
        self.front.len() + self.behind.len()
    }

    /// Whether a token within a sequence stands for no letter: the unknown one, or one that is
    /// otherwise around sequences, as `[SEP]` between two chains.
    #[must_use]
    pub fn is_no_letter(&self, id: u32) -> bool {
        id == self.unk || self.front.contains(&id) || self.behind.contains(&id)
    }

    /// Index of the token for pooling `cls`, among the special tokens in front.
    #[must_use]
    pub fn cls_position(&self) -> Option<usize> {
        let cls = self.cls?;
        self.front.iter().position(|&id| id == cls)
    }
}

/// ESM's.
pub const ESM: SpecialNames<'static> = SpecialNames {
    front: &["<cls>"],
    behind: &["<eos>"],
    cls: Some("<cls>"),
    pad: "<pad>",
    unk: "<unk>",
};

/// The special tokens of BERT.
pub const BERT: SpecialNames<'static> = SpecialNames {
    front: &["[CLS]"],
    behind: &["[SEP]"],
    cls: Some("[CLS]"),
    pad: "[PAD]",
    unk: "[UNK]",
};

/// Those of Nucleotide Transformer, which has none behind.
pub const NUCLEOTIDE_TRANSFORMER: SpecialNames<'static> = SpecialNames { behind: &[], ..ESM };

/// The ids of special tokens, by their names.
///
/// # Errors
/// Names all tokens that have none.
pub fn ids(
    names: &SpecialNames,
    id_of: impl Fn(&str) -> Option<u32>,
) -> Result<SpecialTokens, VocabularyError> {
    let mut missing = Vec::new();
    let mut id = |name: &&str| {
        id_of(name).unwrap_or_else(|| {
            missing.push((*name).to_owned());
            0
        })
    };
    let special = SpecialTokens {
        front: names.front.iter().map(&mut id).collect(),
        behind: names.behind.iter().map(&mut id).collect(),
        pad: id(&names.pad),
        unk: id(&names.unk),
        cls: names.cls.and_then(&id_of),
    };
    if missing.is_empty() {
        Ok(special)
    } else {
        Err(VocabularyError::Missing { tokens: missing })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stand_where_their_names_do() {
        let names = ["<pad>", "</s>", "<unk>", "<fold>", "<cls>"];
        let id_of = |name: &str| {
            let at = names.iter().position(|&known| known == name)?;
            u32::try_from(at).ok()
        };
        let names = SpecialNames {
            front: &["<fold>", "<cls>"],
            behind: &["</s>"],
            cls: Some("<cls>"),
            pad: "<pad>",
            unk: "<unk>",
        };
        let special = ids(&names, id_of).expect("all are known");
        let expected = SpecialTokens {
            front: vec![3, 4],
            behind: vec![1],
            cls: Some(4),
            pad: 0,
            unk: 2,
        };
        assert_eq!(special, expected);
        assert_eq!((special.count(), special.cls_position()), (3, Some(1)));
        let none = SpecialTokens {
            front: vec![3],
            cls: None,
            ..special
        };
        assert_eq!((none.count(), none.cls_position()), (2, None));
    }

    #[test]
    fn all_missing_tokens_are_named() {
        let error = ids(&BERT, |name| (name == "[PAD]").then_some(7));
        let error = error.expect_err("three are missing").to_string();
        assert_eq!(error, "the vocabulary lacks [CLS], [SEP], [UNK]");
    }
}
