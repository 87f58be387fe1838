//! ESM C's three layouts: transformers', the hub's with fused layers, and that of the `esm`
//! package. The same weights under other names, some of them joined, give the same bytes.

use std::fs;
use std::path::Path;

use crate::support::{self, Format, Tensor, Tensors, write_bin, write_safetensors};
use seqembed_onnx::{ExportOptions, export};

const HUB: &str = "esmc/checkpoints/hub";
const LAYERS: usize = 2;

fn exported(source: &Path, target: &Path) -> [Vec<u8>; 2] {
    let options = ExportOptions {
        name: Some("esmc".to_owned()),
        ..ExportOptions::default()
    };
    export(source, target, &options).unwrap();
    ["weights.bin", "model.onnx"].map(|file| fs::read(target.join(file)).unwrap())
}

/// Tensors one below the other.
fn joined(tensors: &Tensors, names: &[String]) -> Tensor {
    let parts: Vec<&Tensor> = names.iter().map(|name| &tensors[name]).collect();
    Tensor {
        shape: vec![
            parts.iter().map(|part| part.shape[0]).sum(),
            parts[0].shape[1],
        ],
        values: parts.iter().flat_map(|part| part.values.clone()).collect(),
    }
}

/// The hub's weights with queries, keys and values in one tensor and both halves of the
/// feed-forward layer in another. `names` are those of words, last norm, a block, and within: norm
/// and weight of attention, norm, first and second weight of the feed-forward layer.
fn fused(names: [&str; 8]) -> Tensors {
    let hub = support::fixture(HUB);
    let [words, last, block, qkv_norm, qkv, norm, first, second] = names;
    let mut tensors = Tensors::new();
    let mut copy = |to: String, from: &str| {
        tensors.insert(to, hub[from].clone());
    };
    copy(words.to_owned(), "esmc.embed_tokens.weight");
    copy(last.to_owned(), "esmc.norm.weight");
    for layer in 0..LAYERS {
        let ours = |part: &str| format!("esmc.layers.{layer}.{part}");
        let theirs = |part: &str| format!("{block}.{layer}.{part}");
        for kind in ["weight", "bias"] {
            copy(
                theirs(&format!("{qkv_norm}{kind}")),
                &ours(&format!("input_layernorm.{kind}")),
            );
            copy(
                theirs(&format!("{norm}{kind}")),
                &ours(&format!("post_attention_layernorm.{kind}")),
            );
        }
        copy(theirs("attn.q_ln.weight"), &ours("self_attn.q_norm.weight"));
        copy(theirs("attn.k_ln.weight"), &ours("self_attn.k_norm.weight"));
        copy(
            theirs("attn.out_proj.weight"),
            &ours("self_attn.o_proj.weight"),
        );
        copy(theirs(second), &ours("mlp.down_proj.weight"));
    }
    for layer in 0..LAYERS {
        let ours = |part: &str| format!("esmc.layers.{layer}.{part}.weight");
        let three = ["q_proj", "k_proj", "v_proj"].map(|part| ours(&format!("self_attn.{part}")));
        let halves = ["mlp.gate_proj", "mlp.up_proj"].map(ours);
        tensors.insert(format!("{block}.{layer}.{qkv}"), joined(&hub, &three));
        tensors.insert(format!("{block}.{layer}.{first}"), joined(&hub, &halves));
    }
    tensors
}

#[test]
fn all_layouts_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let hub = exported(&support::fixtures().join(HUB), &at("hub_model"));

    let layers = fused([
        "esmc.embed.weight",
        "esmc.transformer.norm.weight",
        "esmc.transformer.blocks",
        "attn.layernorm_qkv.layer_norm_",
        "attn.layernorm_qkv.weight",
        "ffn.layer_norm_",
        "ffn.fc1_weight",
        "ffn.fc2_weight",
    ]);
    let source = at("layers");
    fs::create_dir(&source).unwrap();
    let config = r#"{"model_type": "esmc", "d_model": 128, "n_heads": 2, "n_layers": 2}"#;
    fs::write(source.join("config.json"), config).unwrap();
    write_safetensors(&source.join("model.safetensors"), &layers, Format::F16);
    assert!(exported(&source, &at("layers_model")) == hub);

    let mut package = fused([
        "embed.weight",
        "transformer.norm.weight",
        "transformer.blocks",
        "attn.layernorm_qkv.0.",
        "attn.layernorm_qkv.1.weight",
        "ffn.0.",
        "ffn.1.weight",
        "ffn.3.weight",
    ]);
    package.insert(
        "sequence_head.3.bias".to_owned(),
        Tensor {
            shape: vec![64],
            values: vec![0.0; 64],
        },
    );
    // Its files do not tell how many heads there are, and only those of published widths are known.
    let source = at("esmc_small.pth");
    write_bin(&source, &package, Format::F32);
    let error = export(&source, &at("refused"), &ExportOptions::default()).unwrap_err();
    assert!(error.to_string().contains("num_attention_heads"), "{error}");
    let source = at("package");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("config.json"), r#"{"n_heads": 2}"#).unwrap();
    write_bin(&source.join("pytorch_model.bin"), &package, Format::F32);
    assert!(exported(&source, &at("package_model")) == hub);
}
