//! What a session tells of itself: everything is read from what was loaded, and nothing taken from what was asked for.

use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum as _;
use ort::value::ValueType;
use seqembed_onnx::WeightsFile;
use seqembed_onnx::weights::table::hex;
use sha2::{Digest, Sha256};

use super::{Batch, Engine, EngineError, Reduce};
use crate::device::Device;
use crate::settings::Precision;

/// A model that is loaded, with what is known of it.
pub trait Session: Engine {
    /// What was loaded, and where.
    fn facts(&self) -> &Facts;

    /// The file with the weights, where they are read from it while batches are run.
    fn weights(&self) -> Option<&WeightsFile> {
        None
    }
}

impl Session for Arc<dyn Session> {
    fn facts(&self) -> &Facts {
        (**self).facts()
    }

    fn weights(&self) -> Option<&WeightsFile> {
        (**self).weights()
    }
}

impl Engine for Arc<dyn Session> {
    fn run(&self, batch: &Batch, reduce: Reduce) -> Result<Vec<f32>, EngineError> {
        (**self).run(batch, reduce)
    }

    fn cost(&self, batch: &Batch) -> usize {
        (**self).cost(batch)
    }

    fn computed(&self) -> Vec<(Instant, Instant)> {
        (**self).computed()
    }
}

/// A session whose weights were verified.
pub struct Verified<S> {
    /// The session.
    pub session: S,
    /// What is known of it.
    pub facts: Facts,
    /// Its weights, where they are read from the file while batches are run.
    pub weights: Option<Arc<WeightsFile>>,
}

impl<S: Session> Engine for Verified<S> {
    fn run(&self, batch: &Batch, reduce: Reduce) -> Result<Vec<f32>, EngineError> {
        self.session.run(batch, reduce)
    }

    fn cost(&self, batch: &Batch) -> usize {
        self.session.cost(batch)
    }

    fn computed(&self) -> Vec<(Instant, Instant)> {
        self.session.computed()
    }
}

impl<S: Session> Session for Verified<S> {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn weights(&self) -> Option<&WeightsFile> {
        self.weights.as_deref()
    }
}

/// What is known of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Where it runs.
    pub device: Device,
    /// The lowest number format of its weights and casts.
    pub precision: Precision,
    /// SHA-256 of the weights, in hexadecimal.
    pub weights_sha256: String,
    /// [`Architecture::blake3`](seqembed_onnx::Architecture::blake3) of what the graph computes with the weights.
    pub architecture: String,
    /// SHA-256 of the graph, in hexadecimal.
    pub graph_sha256: String,
    /// The layer that is given.
    pub layer: usize,
    /// What it can give for a batch.
    pub outputs: Vec<Reduce>,
    /// Width of a row.
    pub hidden: usize,
    /// Whether it pads the sequences of a batch to one length.
    pub padded: bool,
}

impl Facts {
    /// The facts of a session that was made from `graph`.
    ///
    /// # Errors
    /// When it is no session of a graph of ours, which tell all of this.
    pub(crate) fn of(
        session: &ort::session::Session,
        graph: &[u8],
        device: Device,
    ) -> Result<Self, EngineError> {
        let missing = |what: &str| {
            EngineError::Runtime(format!(
                "the session was loaded, but it does not tell its {what}"
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
            layer: told("layer")
                .and_then(|layer| layer.parse().ok())
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
