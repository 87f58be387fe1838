//! The interface of a model family: how its checkpoints are recognised and read, its input, and how
//! its graphs are built. Each family implements [`Family`] in one file; `mod.rs` lists them.

use serde_json::Value;

use crate::checkpoint::names::Names;
use crate::checkpoint::{Checkpoint, Settings};
use crate::error::Error;
use crate::families::blocks::Blocks;
use crate::families::known_values::KnownValues;
use crate::families::sizes::{FusedFormats, Sizes};
use crate::graph::builder::Builder;
use crate::graph::request::GraphRequest;
use crate::head::HeadForm;
use crate::tokenizer::{SpecialNames, TokenizerKind};
use crate::weights::norm_fold::Folds;
use crate::weights::table::Planned;

/// How well a checkpoint fits a family. The family with the highest value reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Likeness {
    /// It is of another family.
    None,
    /// Its configuration names the family's `model_type`, or a neighbour's, but something that the
    /// family needs is missing or different: reading it says what.
    Related,
    /// It is of this family.
    Full,
}

impl Likeness {
    /// For a family whose checkpoints all have a `config.json` that names its own `model_type`.
    #[must_use]
    pub fn by_model_type(checkpoint: &Checkpoint, model_type: &str) -> Self {
        match &checkpoint.settings {
            Settings::HuggingFace { config, .. }
                if config.get("model_type").and_then(Value::as_str) == Some(model_type) =>
            {
                Self::Full
            }
            _ => Self::None,
        }
    }
}

/// Licence, paper and usual pooling of published models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publication {
    /// The family's name, as its authors write it: `ESM-2`.
    pub family: &'static str,
    /// What a sequence consists of: `amino acids`, `bases`.
    pub letters: &'static str,
    /// The licence of the weights, as an SPDX identifier.
    pub licence: &'static str,
    /// The paper to cite: `doi:` or `arXiv:` and an identifier, else an address.
    pub citation: &'static str,
    /// The pooling that the authors use for a sequence's vector, as for `--pooling`.
    pub pooling: &'static str,
}

impl Publication {
    /// Whether the licence forbids commercial use.
    #[must_use]
    pub fn non_commercial(&self) -> bool {
        // Creative Commons' licences and those of companies are both named so.
        self.licence.contains("-NC-") || self.licence.contains("Non-Commercial")
    }
}

/// A published model of a family.
#[derive(Debug, Clone, PartialEq)]
pub struct Published<F> {
    /// Its name for `--model`.
    pub name: &'static str,
    /// Its repository on the Hugging Face hub.
    pub hub_id: &'static str,
    /// How many parameters, as its authors count them.
    pub parameters: &'static str,
    /// Its licence, its paper and the usual pooling.
    pub publication: Publication,
    /// Its sizes and settings.
    pub family: F,
}

impl<F> Published<F> {
    /// The models of a table with name, hub id, parameters, and the sizes that `family` takes.
    pub fn table<S, const N: usize>(
        publication: Publication,
        table: [(&'static str, &'static str, &'static str, S); N],
        family: impl Fn(S) -> F,
    ) -> Vec<Self> {
        table
            .map(|(name, hub_id, parameters, sizes)| Self {
                name,
                hub_id,
                parameters,
                publication,
                family: family(sizes),
            })
            .into()
    }
}

/// The alphabet of a family's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alphabet {
    /// Amino acids.
    Protein,
    /// Bases.
    Dna,
}

/// Sizes and settings of a model, and everything that depends on its family.
pub trait Family {
    /// Which models it is, for messages: `ESM-2 (model_type "esm", or a fair-esm .pt)`.
    fn about() -> &'static str
    where
        Self: Sized;

    /// How well a checkpoint fits the family, by its configuration and the names of its tensors.
    fn likeness(checkpoint: &Checkpoint) -> Likeness
    where
        Self: Sized;

    /// Reads sizes and settings from a checkpoint.
    ///
    /// # Errors
    /// [`Error::Config`] when one is missing or impossible, or asks for something that the family's
    /// graphs do not compute.
    fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, Error>
    where
        Self: Sized;

    /// The published models, smallest first.
    fn published() -> Vec<Published<Self>>
    where
        Self: Sized;

    /// Published values of a known model's vectors, computed with its real weights.
    #[must_use]
    fn published_values(_name: &str) -> Vec<KnownValues>
    where
        Self: Sized,
    {
        Vec::new()
    }

    /// What its blocks are made of.
    fn blocks(&self) -> Blocks;

    /// Sizes and forms of its blocks, which kernels are chosen by.
    fn sizes(&self) -> Sizes {
        self.blocks().sizes()
    }

    /// How many blocks. Layers are counted from 0, the embeddings, to this.
    fn layers(&self) -> usize {
        self.blocks().layers
    }

    /// Rows of the embedding table.
    fn vocabulary(&self) -> usize;

    /// Number of tokens in its vocabulary file. The embedding table may have more rows, or fewer if
    /// the last tokens never occur in a sequence.
    fn tokens(&self) -> usize {
        self.vocabulary()
    }

    /// The alphabet of its input; `None` if it depends on the vocabulary of the tokenizer.
    fn alphabet(&self) -> Option<Alphabet>;

    /// Which tokenizer reads its input.
    fn tokenizer(&self) -> TokenizerKind;

    /// The special tokens around each sequence. `None`: those that are usual for the kind of
    /// tokenizer.
    fn special_tokens(&self) -> Option<SpecialNames<'static>> {
        None
    }

    /// Letters that its authors replace before they tokenize, in either case: each of the first
    /// becomes the second.
    fn replaced_letters(&self) -> &'static [(u8, u8)] {
        &[]
    }

    /// The longest input that the model was trained on, without special tokens: residues, bases or
    /// k-mers. Longer ones are embedded in windows unless the user says otherwise.
    fn max_residues(&self) -> Option<usize>;

    /// Maximum number of tokens, including special tokens, that the model has positions for;
    /// `None`: unlimited.
    fn position_limit(&self) -> Option<usize> {
        None
    }

    /// Average number of letters per byte pair, if the model has positions for a limited number of
    /// byte pairs. Windows are then cut by byte pairs, and this converts lengths in letters.
    fn letters_per_token(&self) -> Option<usize> {
        None
    }

    /// Where checkpoints have their vocabulary as `SentencePiece` writes it: the tokens by id that
    /// may stand behind the pieces. The model folder has the vocabulary as text.
    fn pieces(&self) -> Option<Vec<String>> {
        None
    }

    /// Content of the tokenizer file, if all models of the family share one.
    fn own_tokenizer(&self) -> Option<Vec<u8>> {
        None
    }

    /// Content of a tokenizer file for random weights.
    fn sample_tokenizer(&self) -> Option<Vec<u8>> {
        self.own_tokenizer()
    }

    /// Checks the text of a vocabulary against the settings, where they name tokens by their ids.
    ///
    /// # Errors
    /// Which setting does not fit.
    fn check_vocabulary(&self, _text: &str) -> Result<(), String> {
        Ok(())
    }

    /// Checks that the sizes can be those of a model.
    ///
    /// # Errors
    /// What is impossible about them.
    fn validate(&self) -> Result<(), String>;

    /// Whether the family was published with a contact head ([`ContactHead`]).
    ///
    /// [`ContactHead`]: crate::contact_head::ContactHead
    fn has_contact_head(&self) -> bool {
        false
    }

    /// How many weights its contact head has, one for each head of each block; `None`: it has none.
    fn contact_weights(&self) -> Option<usize> {
        let blocks = self.blocks();
        self.has_contact_head()
            .then_some(blocks.layers * blocks.heads)
    }

    /// How its checkpoints name their tensors.
    fn names(&self) -> Names;

    /// All tensors of the weights file in the graph's order, and what each is made from.
    fn plan(&self) -> Vec<Planned>;

    /// The language-model head that its checkpoints may have; `None`: none that seqembed knows.
    fn head(&self) -> Option<HeadForm> {
        None
    }

    /// The layer norms that fused graphs fold into the dense layers after them.
    fn folds(&self) -> Folds {
        let blocks = self.blocks();
        if blocks.sizes().fused == FusedFormats::None {
            Folds::default()
        } else if blocks.post_norm {
            blocks.fold_post_norm()
        } else {
            blocks.fold_pre_norm()
        }
    }

    /// Adds a graph's inputs, nodes and outputs.
    fn build(&self, builder: &mut Builder<'_>, request: &GraphRequest);
}
