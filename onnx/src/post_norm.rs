//! What BERT (Devlin et al., 2019) and DNABERT-2 have in common: word embeddings with the first token type's row in them, and
//! blocks whose two halves, attention and feed-forward layer, are each added to what came in and then normalised.

use crate::architecture::GraphKind;
use crate::frame::Frame;
use crate::graph::{Attribute, long};
use crate::weights::{Input, Plan, Recipe};

/// What must hold of the sizes that both have.
///
/// # Errors
/// What does not, in words.
pub fn check(hidden: usize, heads: usize, layer_norm_eps: f32) -> Result<(), String> {
    if !hidden.is_multiple_of(heads) {
        return Err(format!(
            "a width of {hidden} can't be split among {heads} heads"
        ));
    }
    if !(0.0..1.0).contains(&layer_norm_eps) {
        return Err(format!("layer_norm_eps {layer_norm_eps} is out of range"));
    }
    Ok(())
}

/// Plans the table of words, [vocabulary, hidden]: every token is of the first type.
pub fn plan_embedding(plan: &mut Plan, vocabulary: usize, token_types: usize, hidden: usize) {
    let table =
        |name: &str, rows: usize| Input::new(format!("embeddings.{name}.weight"), &[rows, hidden]);
    plan.add(
        "embedding".to_owned(),
        &[vocabulary, hidden],
        Recipe::Shifted {
            table: table("word_embeddings", vocabulary),
            by: table("token_type_embeddings", token_types),
        },
    );
}

/// A layer's attention, with `ALiBi` (padded and plain: what is added to all scores; packed: the heads' slopes) or without.
pub fn attention(
    frame: &mut Frame<'_, '_>,
    state: &str,
    layer: &str,
    heads: usize,
    alibi: Option<&str>,
) -> String {
    match frame.kind {
        GraphKind::Padded | GraphKind::Plain => {
            let parts = frame.split_qkv(state, layer);
            frame.attention(&parts, heads, alibi)
        }
        GraphKind::Packed | GraphKind::Fused => {
            let [qkv, bias] = frame.qkv(state, layer);
            let operator = match alibi {
                Some(_) => "seqembed:AlibiAttention",
                None => "seqembed:Attention",
            };
            let mut inputs = vec![qkv.as_str(), &bias];
            inputs.extend(alibi);
            inputs.push("sequence_starts");
            let heads = ("num_heads", Attribute::Int(long(heads)));
            frame.builder.op(operator, &inputs, &[heads])
        }
    }
}

/// The hidden states [tokens, hidden] behind so many blocks, from the sum of the embeddings. `attention` and `feed_forward` are
/// given the block's input and its name, and leave their last bias to the norm.
pub fn blocks<'b, 't>(
    frame: &mut Frame<'b, 't>,
    embedded: &str,
    layers: usize,
    attention: impl Fn(&mut Frame<'b, 't>, &str, &str) -> String,
    feed_forward: impl Fn(&mut Frame<'b, 't>, &str, &str) -> String,
) -> String {
    let mut state = frame.norm(embedded, "embedding_norm");
    for layer in 0..layers {
        let name = format!("layer.{layer}");
        frame.builder.scope(&name);
        let attended = attention(frame, &state, &name);
        let attended = frame.project(&attended, &name);
        let bias = format!("{name}.attention_output.bias");
        let norm = format!("{name}.attention_norm");
        [state, _] = frame.skip_norm(&attended, &state, &bias, &norm, false);
        let fed = feed_forward(frame, &state, &name);
        let bias = format!("{name}.down.bias");
        let norm = format!("{name}.feed_forward_norm");
        [state, _] = frame.skip_norm(&fed, &state, &bias, &norm, false);
    }
    state
}
