//! The number of tokens per batch on a GPU: enough to keep it busy, limited by its memory.
//!
//! A packed batch of `T` tokens needs, at the widest point of a layer, for each token: the residual
//! stream and its norm (2 `H`), query, key and value (3 `H`), the attention's output and its
//! projection (2 `H`), another `H` for what is being rotated or copied, and the feed-forward layer
//! before and after its activation (2 `I`, gated 3 `I`), all in the precision computed in; and at
//! the end a row of 32-bit floats (`H`) that is pooled. Attention itself needs no matrix of `T` by
//! `T`. ONNX Runtime's arena holds up to one batch more than are on the device at the same time,
//! because it keeps memory for the next batch.

use seqembed_onnx::Sizes;

/// The fewest tokens that a batch is planned with. Where even these do not fit, batches are split
/// when the device runs out of memory.
pub const MIN_TOKENS: usize = 4_096;
/// Beyond this nothing gets faster. Four times 132 tiles of 128 rows: on a GPU of 132
/// multiprocessors (H100, H200), the tiles of every product come in whole waves, however many
/// columns it has.
pub const MAX_TOKENS: usize = 67_584;

/// Bytes of activations per token, if a value takes `bytes`.
#[must_use]
pub fn bytes_per_token(sizes: &Sizes, bytes: usize) -> usize {
    let wide = if sizes.gated { 3 } else { 2 } * sizes.intermediate;
    (8 * sizes.hidden + wide) * bytes + 4 * sizes.hidden
}

/// Tokens per batch for a GPU with `free` bytes of memory, of which the weights need `weights`.
///
/// `concurrent` batches are on the device at the same time. [`MAX_TOKENS`] where these fit: the
/// more tiles a product has, the less its last, partly filled wave of tiles costs.
#[must_use]
pub fn batch_tokens(
    free: u64,
    weights: u64,
    sizes: &Sizes,
    bytes: usize,
    concurrent: usize,
) -> usize {
    // A tenth is left for the workspaces of libraries and for other processes.
    let room = free.saturating_sub(weights) / 10 * 9;
    let each = ((1 + concurrent) * bytes_per_token(sizes, bytes).max(1)) as u64;
    let fits = usize::try_from(room / each).unwrap_or(usize::MAX);
    // Whole thousands (of 1,024): the same number from one run to the next, though free memory
    // varies a little.
    (fits / 1_024 * 1_024).clamp(MIN_TOKENS, MAX_TOKENS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use seqembed_onnx::{Activation, FusedFormats};

    use super::*;

    fn sizes(hidden: usize, intermediate: usize, gated: bool) -> Sizes {
        Sizes {
            hidden,
            heads: (hidden / 64).max(1),
            head_width: 64,
            intermediate,
            rotary_base: None,
            alibi: gated,
            gated,
            activation: Activation::Gelu,
            query_key_norm: false,
            post_norm: gated,
            has_cuda_kernels: true,
            fused: FusedFormats::Half,
        }
    }

    #[test]
    fn large_gpus_get_the_target_and_small_ones_less() {
        // ESM-2 650M.
        let wide = &sizes(1_280, 5_120, false);
        // By hand: (8 * 1280 + 2 * 5120) * 2 + 4 * 1280 = 46,080 bytes a token, twice that with the
        // arena.
        assert_eq!(bytes_per_token(wide, 2), 46_080);
        assert_eq!(
            batch_tokens(80 << 30, 1_300_000_000, wide, 2, 1),
            MAX_TOKENS
        );
        // 2 GiB less 1.3 GB leave 0.76 GB for activations: 8,276 tokens.
        assert_eq!(batch_tokens(2 << 30, 1_300_000_000, wide, 2, 1), 8_192);
        assert_eq!(batch_tokens(1 << 30, 1_300_000_000, wide, 2, 1), MIN_TOKENS);
        let narrow = &sizes(768, 3_072, true);
        assert_eq!(
            batch_tokens(80 << 30, 250_000_000, narrow, 2, 2),
            MAX_TOKENS
        );
        // (8 * 768 + 3 * 3072) * 2 + 4 * 768 = 33,792 bytes a token, three times that for two
        // batches and the arena; 1.71 GB.
        assert_eq!(batch_tokens(2 << 30, 250_000_000, narrow, 2, 2), 16_384);
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds_and_grows_with_memory(
            free in 0..200_u64 << 30,
            more in 0..50_u64 << 30,
            weights in 0..20_u64 << 30,
            hidden in 1..9_000_usize,
            gated: bool,
        ) {
            let shape = &sizes(hidden, 4 * hidden, gated);
            let tokens = batch_tokens(free, weights, shape, 2, 1);
            prop_assert!((MIN_TOKENS..=MAX_TOKENS).contains(&tokens));
            prop_assert!(batch_tokens(free + more, weights, shape, 2, 1) >= tokens);
            prop_assert!(batch_tokens(free, weights, shape, 2, 2) <= tokens);
        }
    }
}
