//! How large batches and chunks of a group are, for its devices, model and options.

use super::chunker::ChunkLimits;
use super::group::Group;
use super::options::Options;
use super::record_parts::PartTokens;
use crate::engine::loader;
use crate::engine::select::SelectedDevice;
use crate::settings::{Kernels, Precision};

/// Default number of tokens per batch on a CPU: enough for matrix products at full speed, and few
/// enough for the activations of a layer to stay in the cache.
const BATCH_TOKENS: usize = 512;

/// Maximum size in bytes of the per-token output of a chunk.
const CHUNK_BYTES: usize = 128 << 20;

/// The same for GPUs, whose batches are larger. Up to three chunks are in memory.
const GPU_CHUNK_BYTES: usize = 384 << 20;

/// Bytes of vectors per part of a long record with per-token output. Saved data are identified by
/// their parts, so a change of this size would make the data saved by earlier versions useless.
const PART_BYTES: usize = 8 << 20;

/// Tokens in a part of a long record that is pooled.
const PART_TOKENS: usize = 1 << 15;

/// Batches of a chunk for each GPU.
const BATCHES_AHEAD: usize = 16;

/// With more layers than these, chunks are smaller: the rows of a chunk are in memory.
const FEW_LAYERS: usize = 4;

/// The limits of a group on its devices.
pub(super) fn limits(group: &Group, options: &Options, devices: &[SelectedDevice]) -> ChunkLimits {
    let hidden = group.width();
    let settings = || group.tasks.iter().map(|task| &task.job.settings);
    let asked = settings()
        .filter_map(|settings| settings.batch_tokens)
        .min();
    let per_token = settings().any(|settings| settings.pooling.is_per_token());
    let part_tokens = PartTokens {
        pooled: PART_TOKENS,
        each: (PART_BYTES / (4 * hidden).max(1)).max(1),
    };
    let free = devices.iter().filter_map(|device| device.gpu.as_ref());
    let limits = if let Some(free) = free.map(|(_, free)| *free).min() {
        let batch_tokens = asked.unwrap_or_else(|| {
            loader::gpu_batch_tokens(&group.model, group.precision, free, per_token)
        });
        // The more batches in a chunk, the fewer are cut short at its end; and no device may have
        // to wait for the next chunk. A quarter of a batch less, as batches are filled up to a
        // sequence: else the rest would be a small batch of its own.
        let mut chunk_tokens = batch_tokens * devices.len() * BATCHES_AHEAD - batch_tokens / 4;
        if per_token {
            let bytes = match group.precision {
                Precision::Fp16 | Precision::Fp8 => 2,
                _ => 4,
            };
            // Whole batches. They are few, so that the rest is less: what a batch is not filled
            // with costs more than a batch of a single sequence now and then.
            let most = GPU_CHUNK_BYTES / (bytes * hidden);
            let whole =
                (most / batch_tokens.max(1) * batch_tokens).saturating_sub(batch_tokens / 32);
            chunk_tokens = chunk_tokens.min(if whole > 0 { whole } else { most });
        }
        ChunkLimits {
            chunk_tokens,
            batch_tokens,
            padded: false,
            part_tokens,
        }
    } else {
        let batch_tokens = asked.unwrap_or(BATCH_TOKENS);
        let mut chunk_tokens = (batch_tokens * options.threads * 16).max(1 << 15);
        if per_token {
            chunk_tokens = chunk_tokens.min(CHUNK_BYTES / (4 * hidden));
        }
        ChunkLimits {
            chunk_tokens,
            batch_tokens,
            padded: options.kernels == Kernels::Portable,
            part_tokens,
        }
    };
    let chunk_tokens = limits.chunk_tokens * FEW_LAYERS / FEW_LAYERS.max(group.layers.count());
    ChunkLimits {
        chunk_tokens: chunk_tokens.max(1),
        ..limits
    }
}
