//! A model's configuration, before any family has read it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A setting inside a fair-esm file.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// Text.
    Text(String),
}

/// A model's configuration, as its checkpoint has it.
#[derive(Debug, Clone, PartialEq)]
pub enum Settings {
    /// `config.json`.
    HuggingFace {
        /// Path of the file.
        path: PathBuf,
        /// The parsed contents.
        config: Value,
    },
    /// The Namespace inside a `.pt`, empty when there is none.
    FairEsm {
        /// Path of the file.
        path: PathBuf,
        /// The parsed contents.
        settings: BTreeMap<String, Scalar>,
    },
}

impl Settings {
    /// The file that has the configuration.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::HuggingFace { path, .. } | Self::FairEsm { path, .. } => path,
        }
    }
}
