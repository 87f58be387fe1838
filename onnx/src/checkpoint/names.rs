//! Names of tensors in checkpoints: which belong to the encoder, which do not, and one canonical
//! spelling for all sources.

/// How the checkpoints of a family name their tensors.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// Prefix of the names of the base model if it is part of a larger model.
    pub prefixes: &'static [&'static str],
    /// The modules of the base model that make up the encoder.
    pub encoder: &'static [&'static str],
    /// Tensors of the base model that no vector depends on, in the family's own spelling. `*` is
    /// any part of a name between two dots, and a last `**` any rest.
    pub unused: &'static [&'static str],
    /// The spelling that all layouts of the family are brought to, of a name without its prefix. A
    /// name that the family does not know stays as it is.
    pub spelling: fn(&str) -> String,
}

/// A tensor's name, its layer norm's parts called weight and bias.
#[must_use]
pub fn plain_name(name: &str) -> String {
    if let Some(stem) = name.strip_suffix(".gamma") {
        format!("{stem}.weight")
    } else if let Some(stem) = name.strip_suffix(".beta") {
        format!("{stem}.bias")
    } else {
        name.to_owned()
    }
}

/// The block that a tensor belongs to, and its name within.
#[must_use]
pub fn in_layer(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("encoder.layer.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

/// Buffers that any module may have, by the last part of their name: positions, which are counted,
/// rotary frequencies, which are computed ([`check_frequencies`](super::check_frequencies) compares
/// them), and what PyTorch keeps for training.
const BUFFERS: [&str; 4] = [
    "position_ids",
    "inv_freq",
    "num_batches_tracked",
    "_extra_state",
];

/// Two names that T5's table of words is saved under, in alphabetical order: encoder and decoder
/// share it.
const TIED: [&str; 2] = ["encoder.embed_tokens.weight", "shared.weight"];

/// Whether two names are of one tensor, which a checkpoint may hold under both.
pub(super) fn are_tied(first: &str, second: &str) -> bool {
    TIED.iter()
        .zip([first, second])
        .all(|(tied, name)| name.ends_with(tied))
}

/// The purpose of a module outside the encoder, according to its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beside {
    /// It uses the encoder's output.
    Head,
    /// It changes what goes into the encoder or through it.
    Feeding,
    /// The name does not say.
    Unknown,
}

/// Prefixes of names of modules that change a model from within: `LoRA` and similar.
pub(super) const LOW_RANK: [&str; 2] = ["lora", "dora"];
/// Learned tokens before each sequence.
pub(super) const PROMPTS: [&str; 4] = ["prefix", "prompt", "ptuning", "softprompt"];
/// Small layers between those of the model.
pub(super) const ADAPTERS: [&str; 2] = ["adapter", "adaptor"];
/// Words that only the name of a head has.
const HEAD: [&str; 38] = [
    "class",
    "classes",
    "classification",
    "classifier",
    "classifiers",
    "cls",
    "contact",
    "contrastive",
    "criterion",
    "decoder",
    "dropout",
    "head",
    "heads",
    "label",
    "labels",
    "logit",
    "logits",
    "loss",
    "mlm",
    "nsp",
    "out",
    "output",
    "outputs",
    "pool",
    "pooler",
    "pooling",
    "prediction",
    "predictions",
    "predictor",
    "qa",
    "regression",
    "regressor",
    "relationship",
    "score",
    "scorer",
    "scores",
    "target",
    "version",
];
/// Prefixes of words in the names of modules that make or change the encoder's input.
const INPUT: [&str; 2] = ["embed", "input"];
/// Layers that count as a head if they are outside the encoder and their names do not show that
/// they make its input.
const LAYER: [&str; 10] = [
    "dense",
    "fc",
    "ffn",
    "lin",
    "linear",
    "mlp",
    "proj",
    "projection",
    "projections",
    "projector",
];

/// The words of a part of a name, without numbers.
pub(super) fn words(part: &str) -> impl Iterator<Item = &str> {
    part.split(|c: char| !c.is_ascii_alphabetic())
        .filter(|word| !word.is_empty())
}

pub(super) fn begins(part: &str, with: &[&str]) -> bool {
    with.iter().any(|start| part.starts_with(start))
}

impl Beside {
    /// By the name of a tensor that is not below a module of the encoder.
    fn of(name: &str) -> Self {
        let name = name.to_ascii_lowercase();
        let module = name.split('.').next().unwrap_or_default();
        let words: Vec<&str> = words(module).collect();
        let has = |list: &[&str]| words.iter().any(|word| list.contains(word));
        let strong = |word: &str| begins(word, &PROMPTS) || begins(word, &ADAPTERS);
        // Learned tokens, such as `prefix_tokens` and `cls_token`, are added to those of a
        // sequence.
        let tokens = matches!(words.last(), Some(&("token" | "tokens")));
        // Low-rank changes are merged before an export, wherever they are; a head's own adapters
        // are the head's.
        let low_rank = name
            .split('.')
            .flat_map(self::words)
            .any(|word| begins(word, &LOW_RANK));
        let input = words.iter().any(|word| begins(word, &INPUT));
        if low_rank || tokens || words.iter().any(|word| strong(word)) {
            Self::Feeding
        } else if has(&HEAD) {
            // `class_embedding` may be a head's or a learned token.
            if input && !has(&["classifier", "decoder", "head", "heads"]) {
                Self::Unknown
            } else {
                Self::Head
            }
        } else if input
            || matches!(words[..], ["in", ..] | [.., "in"])
            || name.split('.').flat_map(self::words).any(strong)
        {
            Self::Feeding
        } else if has(&LAYER) {
            Self::Head
        } else {
            Self::Unknown
        }
    }
}

/// PEFT's model around another one.
pub(super) const PEFT: &str = "base_model.";

/// Whether a checkpoint with these names has the base model as a part of a larger one.
pub fn is_part<'name>(family: &Names, mut names: impl Iterator<Item = &'name str>) -> bool {
    let prefixes = family.prefixes;
    names.any(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
}

/// Hugging Face's name of a tensor of the encoder; `None` for tensors outside it, and for those
/// that do not affect the embeddings. `part`: whether other tensors show that the base model is
/// part of a larger model.
#[must_use]
pub fn canonical(family: &Names, name: &str, part: bool) -> Option<String> {
    let within = family
        .prefixes
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix));
    let spelled = (family.spelling)(within.unwrap_or(name));
    let module = spelled.split('.').next().unwrap_or_default();
    let last = spelled.rsplit('.').next().unwrap_or_default();
    if BUFFERS.contains(&last) || family.unused.iter().any(|pattern| fits(pattern, &spelled)) {
        return None;
    }
    let inside = within.is_some() || family.encoder.contains(&module) || name.starts_with(PEFT);
    let passed_over = !inside
        && match Beside::of(&spelled) {
            Beside::Head => true,
            Beside::Feeding => false,
            // Without a prefix it may as well be a part of the encoder.
            Beside::Unknown => part,
        };
    (!passed_over).then_some(spelled)
}

/// The purpose of a tensor outside the encoder, according to its name.
pub(super) fn beside(family: &Names, canonical: &str, name: &str) -> Option<Beside> {
    let module = canonical.split('.').next().unwrap_or_default();
    let inside = family
        .prefixes
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || family.encoder.contains(&module);
    (!inside).then(|| Beside::of(canonical))
}

/// Whether a tensor has the rotary frequencies of one of the encoder's blocks.
#[must_use]
pub fn are_frequencies(family: &Names, name: &str) -> bool {
    let mut prefixes = family.prefixes.iter();
    let within = prefixes.find_map(|prefix| name.strip_prefix(prefix));
    let spelled = (family.spelling)(within.unwrap_or(name));
    // transformers 5 saves one tensor for all blocks, with a literal `*` in place of their number.
    spelled.starts_with("encoder.layer.") && spelled.ends_with(".inv_freq")
}

/// Whether a name is of a pattern, see [`Names::unused`].
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = name.split('.');
    for wanted in pattern.split('.') {
        match (wanted, parts.next()) {
            ("**", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(part)) if wanted == part => {}
            _ => return false,
        }
    }
    parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::bert::Bert;
    use crate::families::dnabert2::Dnabert2;
    use crate::families::esm2::Esm2;
    use crate::families::family::Family as _;

    #[test]
    fn patterns_are_of_whole_parts() {
        assert!(fits("pooler.**", "pooler.dense.weight"));
        assert!(fits("a.*.c", "a.*.c") && fits("a.*.c", "a.7.c"));
        for (pattern, name) in [
            ("pooler.**", "pooler"),
            ("pooler.**", "poolers.dense.weight"),
            ("a.*.c", "a.b.c.d"),
            ("a.*.c", "a.c"),
            ("a", "a.b"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }

    /// Names of what goes into an encoder or changes it, from the code of prompt tuning, PEFT,
    /// adapters and ELECTRA's projection.
    #[test]
    fn what_feeds_the_encoder_is_not_passed_over() {
        let esm2 = Esm2::of_sizes(6, 320, 20).names();
        for name in [
            "soft_prompts.weight",
            "softPrompt",
            "prefix_tokens",
            "prefix_projection.0.weight",
            "prompt.weight",
            "prompts",
            "prompts.0",
            "deep_prompt_embeddings",
            "task.prompt_embeddings.weight",
            "lora.layer1.A",
            "LoRA_A",
            "esm_lora.0.A",
            "blocks.0.lora_A",
            "classifier.lora_A.weight",
            "adapter_layers.0.down.weight",
            "task_adapters.0.up.weight",
            "adapter_head.weight",
            "input_proj.weight",
            "inputProj.weight",
            "proj_in.weight",
            "embed_proj.weight",
            "embeddings_project.weight",
            "position_embeddings.weight",
            "cls_token",
            "virtual_tokens",
        ] {
            for part in [false, true] {
                assert!(canonical(&esm2, name, part).is_some(), "{name} {part}");
            }
        }
        // Without a prefix, what may be a part of the encoder.
        for name in [
            "my_module.weight",
            "norm.weight",
            "blocks.0.weight",
            "class_embedding",
        ] {
            assert!(canonical(&esm2, name, false).is_some(), "{name}");
            assert_eq!(canonical(&esm2, name, true), None, "{name}");
        }
    }

    /// Tensors as published checkpoints name them, from the lists that transformers and fair-esm
    /// print on loading, and heads of their own classes: none of them is the encoder's.
    #[test]
    fn what_published_checkpoints_hold_beside_the_encoder_is_passed_over() {
        let esm2 = Esm2::of_sizes(6, 320, 20).names();
        let bert = Bert::dnabert(6).names();
        let dnabert2 = Dnabert2::of_published_sizes().names();
        let cases: [(&Names, &[&str], &[&str]); 3] = [
            (
                &esm2,
                &[
                    "esm.embeddings.position_ids",
                    "esm.embeddings.position_embeddings.weight",
                    "esm.encoder.layer.0.attention.self.rotary_embeddings.inv_freq",
                    "esm.contact_head.regression.weight",
                    "esm.pooler.dense.weight",
                    "encoder.sentence_encoder.layers.5.self_attn.rot_emb.inv_freq",
                    "encoder.lm_head.dense.weight",
                    "encoder.lm_head.bias",
                    "contact_head.regression.bias",
                    "lm_head.decoder.weight",
                    "pooler.dense.bias",
                    "my_head.weight",
                    "fc.weight",
                    "fc1.bias",
                    "linear.weight",
                    "mlp.0.weight",
                    "proj.weight",
                    "projection_head.0.weight",
                    "token_classifier.weight",
                    "embedding_head.weight",
                    "pre_classifier.weight",
                    "loss_fn.pos_weight",
                ],
                &[
                    "lstm.weight_ih_l0",
                    "norm.weight",
                    "attention.in_proj_weight",
                    "classifier.dense.weight",
                    "classifier.out_proj.bias",
                    "my_regression_head.0.weight",
                    "mlm_head.weight",
                ],
            ),
            (
                &bert,
                &[
                    "bert.embeddings.position_ids",
                    "bert.pooler.dense.weight",
                    "cls.predictions.transform.LayerNorm.gamma",
                    "cls.predictions.decoder.weight",
                    "cls.seq_relationship.weight",
                    "pooler.dense.weight",
                    "qa_outputs.weight",
                ],
                &["rnn.weight_ih_l0", "score.weight"],
            ),
            (
                &dnabert2,
                &[
                    "bert.embeddings.position_ids",
                    "bert.pooler.dense.weight",
                    "cls.predictions.bias",
                    "pooler.dense.bias",
                ],
                &["contrast_head.0.weight", "anything.weight"],
            ),
        ];
        for (family, always, as_a_part) in cases {
            for name in always {
                assert_eq!(canonical(family, name, false), None, "{name}");
                assert_eq!(canonical(family, name, true), None, "{name}");
            }
            for name in as_a_part {
                assert_eq!(canonical(family, name, true), None, "{name}");
            }
        }
    }
}
