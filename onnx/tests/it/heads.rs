//! Language-model heads: which exports have one, and that embeddings do not depend on it.

use std::fs;
use std::path::{Path, PathBuf};

use seqembed_onnx::{
    Error, ExportOptions, GraphKind, GraphRequest, HEAD_FILE, Model, Output, Precision, export,
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

fn exported(name: &str, folder: &Path) -> Model {
    export(&fixture(name), folder, &ExportOptions::default()).unwrap()
}

#[test]
fn every_layout_of_a_checkpoint_has_the_same_head() {
    let folder = tempfile::tempdir().unwrap();
    let mut heads = Vec::new();
    for (at, name) in ["hub-safetensors", "hub-bin", "esm2_small.pt"]
        .iter()
        .enumerate()
    {
        let target = folder.path().join(at.to_string());
        let model = exported(&format!("esm2/checkpoints/{name}"), &target);
        let form = model.head().unwrap().form().to_owned();
        assert_eq!((form.hidden, form.vocabulary), (48, 33), "{name}");
        assert_eq!(form.token_dropout, Some(32), "{name}");
        heads.push(fs::read(target.join(HEAD_FILE)).unwrap());
    }
    assert!(heads.iter().all(|head| *head == heads[0]));
}

#[test]
fn embeddings_do_not_depend_on_a_head() {
    let folder = tempfile::tempdir().unwrap();
    let [with, without] = ["with", "without"].map(|name| folder.path().join(name));
    let model = exported("esm2/checkpoints/hub-safetensors", &with);
    let bare = exported("esm2/checkpoints/hub-transformers5", &without);
    for file in ["weights.bin", "model.onnx", "vocab.txt"] {
        let [one, other] = [&with, &without].map(|folder| fs::read(folder.join(file)).unwrap());
        assert!(one == other, "{file}");
    }
    assert_eq!(model.info().identity(), bare.info().identity());
    assert!(model.info().head.is_some() && bare.info().head.is_none());
    assert!(!without.join(HEAD_FILE).exists());
    let error = bare.head().unwrap_err().to_string();
    assert!(error.contains("seqembed export"), "{error}");
    let other = exported("amplify/checkpoints/hub", &folder.path().join("amplify"));
    let error = other.head().unwrap_err();
    assert!(matches!(
        error,
        Error::NoHead {
            family_has_one: false,
            ..
        }
    ));
}

#[test]
fn a_damaged_head_is_refused_but_embeddings_work_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model");
    let head = exported("esm1/checkpoints/esm1b-safetensors", &target).head();
    let request = GraphRequest {
        kind: GraphKind::Packed,
        precision: Precision::Fp32,
        layers: vec![2],
        outputs: vec![Output::Mean, Output::Tokens],
    };
    let model = Model::open(&target).unwrap();
    let graph = model.head_graph_at(&request, "weights.bin", &head.unwrap());
    let plain = model.graph(&request).unwrap();
    let has = |bytes: &[u8], name: &str| bytes.windows(name.len()).any(|at| at == name.as_bytes());
    assert!(has(&graph.unwrap(), "embedding_factor"));
    assert!(!has(&plain, "embedding_factor") && !has(&plain, "lm_head"));
    let path = target.join(HEAD_FILE);
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let model = Model::open(&target).unwrap();
    assert!(matches!(model.head(), Err(Error::Damaged { .. })));
    assert_eq!(model.graph(&request).unwrap(), plain);
}

#[test]
fn the_older_files_of_fair_esm_have_no_row_for_masks() {
    let folder = tempfile::tempdir().unwrap();
    let row = |name: &str, at: usize| {
        let target = folder.path().join(at.to_string());
        let model = exported(name, &target);
        let tensors = &model.info().head.as_ref().unwrap().tensors;
        let decoder = tensors
            .iter()
            .find(|tensor| tensor.name.contains("decoder.weight"));
        let start = usize::try_from(decoder.unwrap().offset).unwrap() + 32 * 32 * 4;
        fs::read(target.join(HEAD_FILE)).unwrap()[start..start + 32 * 4].to_vec()
    };
    assert!(
        row("esm1/checkpoints/esm1v_small.pt", 0)
            .iter()
            .all(|&byte| byte == 0)
    );
    assert!(
        row("esm1/checkpoints/esm1v-safetensors", 1)
            .iter()
            .any(|&byte| byte != 0)
    );
}
