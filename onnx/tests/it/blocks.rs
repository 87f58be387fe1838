//! Every form of block that a family can describe, against `onnx/reference/blocks.py`.

use std::fs;
use std::process::Command;

use seqembed_onnx::families::attention::Attention;
use seqembed_onnx::families::blocks::{Blocks, Positions};
use seqembed_onnx::graph::builder::Builder;
use seqembed_onnx::graph::layers::{Activation, Norm};
use seqembed_onnx::graph::outputs::Outputs;
use seqembed_onnx::weights::random::Random;
use seqembed_onnx::weights::table::{Input, Plan, place, write};
use seqembed_onnx::{GraphKind, GraphRequest, Output, Precision, Storage};

const BASE: f32 = 10_000.0;

/// Computes the blocks in ONNX Runtime and in numpy.
fn check(name: &str, blocks: &Blocks) {
    let folder = tempfile::tempdir().unwrap();
    let mut plan = Plan::default();
    plan.copy(
        "embedding".to_owned(),
        Input::new("embedding".to_owned(), &[11, blocks.hidden]),
    );
    blocks.plan_pre_norm(&mut plan);
    write(
        &folder.path().join("weights.bin"),
        &plan.0,
        &Random { seed: 3 },
    )
    .unwrap();
    let tensors = place(&plan.0);
    let mut builder = Builder::new(&tensors, Storage::from(Precision::Fp32));
    let mut frame = blocks.frame(&mut builder, GraphKind::Padded);
    let attention = Attention::new(blocks, &mut frame);
    frame.builder.scope("embedding");
    let state = frame.embedding();
    let request = GraphRequest {
        kind: GraphKind::Padded,
        precision: Precision::Fp32,
        layers: vec![blocks.layers],
        outputs: vec![Output::Tokens],
    };
    let mut outputs = Outputs::new(&request);
    blocks.build_pre_norm(&mut frame, &attention, state, &mut outputs);
    outputs.finish(&mut frame);
    fs::write(folder.path().join("model.onnx"), builder.finish(&[])).unwrap();
    let form = serde_json::json!({
        "name": name,
        "layers": blocks.layers,
        "heads": blocks.heads,
        "head_width": blocks.head_width,
        "intermediate": blocks.intermediate,
        "rms": blocks.norm == Norm::RmsNorm,
        "epsilon": blocks.epsilon,
        "base": BASE,
        "activation": format!("{:?}", blocks.activation),
        "gated": blocks.gated,
        "tensors": tensors,
    });
    fs::write(folder.path().join("blocks.json"), form.to_string()).unwrap();
    let python = std::env::var("SEQEMBED_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/reference/blocks.py");
    let run = Command::new(python)
        .arg(script)
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{name}: {said}");
}

#[test]
fn every_form_computes_what_its_paper_says() {
    let plain = Blocks {
        epsilon: 1e-6,
        positions: Positions::Rotary { base: BASE },
        ..Blocks::bert(2, 48, 3, 40)
    };
    check("layer norm, biases, GELU", &plain);
    check(
        "heads that are not as wide as a vector together",
        &Blocks {
            head_width: 8,
            ..plain
        },
    );
    check(
        "layer norm without bias, no biases, norm of queries and keys",
        &Blocks {
            norm: Norm::LayerNorm { bias: false },
            query_key_norm: true,
            attention_bias: false,
            up_bias: false,
            down_bias: false,
            ..plain
        },
    );
    for activation in [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Silu,
    ] {
        for gated in [false, true] {
            check(
                &format!("RMS norm, {activation:?}, gated: {gated}"),
                &Blocks {
                    norm: Norm::RmsNorm,
                    head_width: 24,
                    query_key_norm: gated,
                    activation,
                    gated,
                    attention_bias: !gated,
                    residual_scale: 0.5,
                    ..plain
                },
            );
        }
    }
}
