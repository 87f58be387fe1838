//! A model loaded on a device: the interface to run it, and its description.
//!
//! Everything in [`SessionInfo`] is read from what was actually loaded, not from what was
//! requested.

use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum as _;
use ort::value::ValueType;
use seqembed_onnx::WeightsFile;
use seqembed_onnx::weights::table::hex;
use sha2::{Digest, Sha256};

use super::batch::{Batch, Reduce};
use super::error::EngineError;
use crate::device::Device;
use crate::settings::{Layers, Precision};
use crate::vectors::Floats;

/// A model on a device: a batch in, rows of numbers out.
pub trait Engine: Send + Sync {
    /// Computes a batch. May be called from several threads at the same time.
    ///
    /// # Errors
    /// What the device or the graph refuses.
    fn run(&self, batch: &Batch, reduce: Reduce) -> Result<Vec<f32>, EngineError>;

    /// Computes a batch as [`Engine::run`] does. The rows are in the precision in which the graph
    /// gives them.
    ///
    /// # Errors
    /// Those of [`Engine::run`].
    fn run_floats(&self, batch: &Batch, reduce: Reduce) -> Result<Floats, EngineError> {
        self.run(batch, reduce).map(Floats::Single)
    }

    /// Predicts contacts, where the graph is one of contacts: for each sequence of n tokens in its
    /// range, the probabilities of its pairs, [n, n], one sequence after the other.
    ///
    /// # Errors
    /// [`EngineError::NoContacts`] for other graphs, else those of [`Engine::run`].
    fn contacts(&self, _batch: &Batch) -> Result<Vec<f32>, EngineError> {
        Err(EngineError::NoContacts)
    }

    /// How many tokens the device computes for a batch, padding included.
    fn cost(&self, batch: &Batch) -> usize {
        batch.tokens()
    }

    /// From when to when the device itself computed, for each batch since this was last asked.
    ///
    /// The intervals in which the device computed, for engines whose [`Engine::run`] may wait for a
    /// free device. Empty if the device computed during the whole of these calls.
    fn computed(&self) -> Vec<(Instant, Instant)> {
        Vec::new()
    }
}

/// A loaded model that can say what it is.
pub trait Session: Engine {
    /// What was loaded, and where.
    fn info(&self) -> &SessionInfo;

    /// The file with the weights, where they are read from it while batches are run.
    fn weights(&self) -> Option<&WeightsFile> {
        None
    }
}

impl Session for Arc<dyn Session> {
    fn info(&self) -> &SessionInfo {
        (**self).info()
    }

    fn weights(&self) -> Option<&WeightsFile> {
        (**self).weights()
    }
}

impl Engine for Arc<dyn Session> {
    fn run(&self, batch: &Batch, reduce: Reduce) -> Result<Vec<f32>, EngineError> {
        (**self).run(batch, reduce)
    }

    fn run_floats(&self, batch: &Batch, reduce: Reduce) -> Result<Floats, EngineError> {
        (**self).run_floats(batch, reduce)
    }

    fn contacts(&self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        (**self).contacts(batch)
    }

    fn cost(&self, batch: &Batch) -> usize {
        (**self).cost(batch)
    }

    fn computed(&self) -> Vec<(Instant, Instant)> {
        (**self).computed()
    }
}

/// The output that a session lacks for what is asked of it.
pub(crate) fn missing(outputs: &[Reduce], asked: Reduce) -> Option<Reduce> {
    let needed = asked.outputs().iter();
    needed.copied().find(|output| !outputs.contains(output))
}

/// A session whose weights file was verified by the hash recorded at the export.
pub struct VerifiedSession<S> {
    /// The session as it was loaded.
    pub session: S,
    /// The description of the session; the hash of the graph does not depend on the location of the
    /// weights file.
    pub info: SessionInfo,
    /// The weights file, where weights are read from it while batches are run.
    pub weights: Option<Arc<WeightsFile>>,
}

impl<S: Session> Engine for VerifiedSession<S> {
    fn run(&self, batch: &Batch, reduce: Reduce) -> Result<Vec<f32>, EngineError> {
        self.session.run(batch, reduce)
    }

    fn run_floats(&self, batch: &Batch, reduce: Reduce) -> Result<Floats, EngineError> {
        self.session.run_floats(batch, reduce)
    }

    fn contacts(&self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        self.session.contacts(batch)
    }

    fn cost(&self, batch: &Batch) -> usize {
        self.session.cost(batch)
    }

    fn computed(&self) -> Vec<(Instant, Instant)> {
        self.session.computed()
    }
}

impl<S: Session> Session for VerifiedSession<S> {
    fn info(&self) -> &SessionInfo {
        &self.info
    }

    fn weights(&self) -> Option<&WeightsFile> {
        self.weights.as_deref()
    }
}

/// What is known about a loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// The device that the session runs on.
    pub device: Device,
    /// The lowest number format of its weights and casts.
    pub precision: Precision,
    /// SHA-256 of the weights, in hexadecimal.
    pub weights_sha256: String,
    /// What the graph computes with the weights, as
    /// [`Architecture::blake3`](seqembed_onnx::Architecture::blake3) has it.
    pub architecture: String,
    /// SHA-256 of the graph, in hexadecimal.
    pub graph_sha256: String,
    /// The layers whose hidden states it outputs; 0 is the embedding layer.
    pub layers: Layers,
    /// The outputs that its graph has.
    pub outputs: Vec<Reduce>,
    /// Numbers in a row: of all layers together.
    pub hidden: usize,
    /// Whether the sequences of a batch are padded to one length.
    pub padded: bool,
}

impl SessionInfo {
    /// Reads the description from a session created from `graph`.
    ///
    /// # Errors
    /// When the graph lacks the metadata that seqembed writes into its graphs.
    pub(crate) fn of(
        session: &ort::session::Session,
        graph: &[u8],
        device: Device,
    ) -> Result<Self, EngineError> {
        let missing = |what: &str| {
            EngineError::Runtime(format!(
                "the session was loaded, but its metadata has no {what}"
            ))
        };
        let metadata = session.metadata()?;
        let told = |key: &str| metadata.custom(&format!("seqembed.{key}"));
        let outputs = session.outputs();
        let hidden = outputs.iter().find_map(|output| match output.dtype() {
            ValueType::Tensor { shape, .. } => usize::try_from(*shape.last()?).ok(),
            _ => None,
        });
        let precision = seqembed_onnx::inspect::lowest_precision(graph)
            .and_then(|name| Precision::from_str(name, false).ok());
        Ok(Self {
            device,
            precision: precision.ok_or_else(|| missing("precision"))?,
            weights_sha256: told("weights_sha256").ok_or_else(|| missing("weights"))?,
            architecture: told("architecture").ok_or_else(|| missing("architecture"))?,
            graph_sha256: hex(&Sha256::digest(graph)),
            layers: told("layer")
                .and_then(|layers| Layers::parse(&layers))
                .ok_or_else(|| missing("layer"))?,
            outputs: [Reduce::Mean, Reduce::Max, Reduce::Tokens]
                .into_iter()
                .filter(|reduce| outputs.iter().any(|output| output.name() == reduce.name()))
                .collect(),
            hidden: hidden.ok_or_else(|| missing("width"))?,
            padded: session
                .inputs()
                .iter()
                .any(|input| input.name() == "lengths"),
        })
    }
}
