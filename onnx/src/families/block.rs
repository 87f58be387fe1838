//! The tensors of a block, as Hugging Face's BERT names them and its relatives took over: what of it they share.

use crate::weights::table::{Input, Plan, Recipe};

/// A tensor of a layer of the checkpoint.
fn tensor(layer: usize, name: &str, shape: &[usize]) -> Input {
    Input::new(format!("encoder.layer.{layer}.{name}"), shape)
}

/// Plans a layer's attention, whose queries, keys and values are dense layers of their own.
pub fn plan_attention(plan: &mut Plan, layer: usize, hidden: usize) {
    let three = ["query", "key", "value"].map(|part| format!("attention.self.{part}"));
    let weights = three
        .iter()
        .map(|part| tensor(layer, &format!("{part}.weight"), &[hidden, hidden]));
    plan.add(
        format!("layer.{layer}.qkv.weight"),
        &[3 * hidden, hidden],
        Recipe::Rows(weights.collect()),
    );
    let [query, key, value] = three.map(|part| tensor(layer, &format!("{part}.bias"), &[hidden]));
    plan.add(
        format!("layer.{layer}.qk.bias"),
        &[2 * hidden],
        Recipe::Rows(vec![query, key]),
    );
    plan_attention_output(plan, layer, hidden, value);
}

/// Plans a layer's output projection of attention. `value_bias` ends with the values' bias, which is folded into the projection's: a
/// row of attention weights sums to one, so it passes through attention as it is.
pub fn plan_attention_output(plan: &mut Plan, layer: usize, hidden: usize, value_bias: Input) {
    let ours = format!("layer.{layer}.attention_output");
    let weight = tensor(layer, "attention.output.dense.weight", &[hidden, hidden]);
    plan.copy(format!("{ours}.weight"), weight.clone());
    plan.add(
        format!("{ours}.bias"),
        &[hidden],
        Recipe::Folded {
            bias: tensor(layer, "attention.output.dense.bias", &[hidden]),
            weight,
            inner: value_bias,
        },
    );
}

/// Plans a layer's feed-forward layer, `inner` wide inside.
pub fn plan_feed_forward(plan: &mut Plan, layer: usize, hidden: usize, inner: usize) {
    for (ours, theirs, to, from) in [
        ("up", "intermediate.dense", inner, hidden),
        ("down", "output.dense", hidden, inner),
    ] {
        let ours = format!("layer.{layer}.{ours}");
        plan.copy(
            format!("{ours}.weight"),
            tensor(layer, &format!("{theirs}.weight"), &[to, from]),
        );
        plan.copy(
            format!("{ours}.bias"),
            tensor(layer, &format!("{theirs}.bias"), &[to]),
        );
    }
}
