//! What a user can do about tensors that the graph has no place for, told by their names.

use std::fmt;

use super::names::{ADAPTERS, LOW_RANK, PEFT, PROMPTS, begins, words};

/// What helps with tensors that the graph has no place for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// `LoRA` and its like, beside the weights that they change.
    Peft,
    /// Learned prompts or prefixes.
    Prompt,
    /// Small layers between those of the model.
    Adapter,
    /// Integers and their scales.
    Quantised,
    /// Weights as lengths and directions, or otherwise parametrised.
    Parametrised,
    /// Weights and masks.
    Pruned,
    /// A decoder's attention.
    Decoder,
    /// A module beside the encoder that makes its input, as its name says.
    Input,
    /// A module beside the encoder that may be a head.
    Unknown,
    /// No tensor has a name that the model's have.
    Foreign,
    /// Anything else.
    Variant,
}

impl Remedy {
    /// Told by the names.
    pub(super) fn of(left: &[(&str, &str)]) -> Option<Self> {
        let any = |is: &dyn Fn(&str) -> bool| left.iter().any(|(_, name)| name.split('.').any(&is));
        let last = |ends: &[&str]| {
            left.iter().any(|(_, name)| {
                name.rsplit('.')
                    .next()
                    .is_some_and(|end| ends.contains(&end))
            })
        };
        let word = |with: &[&str]| {
            any(&|part| words(&part.to_ascii_lowercase()).any(|word| begins(word, with)))
        };
        let kinds = [
            (word(&PROMPTS), Self::Prompt),
            (
                left.iter().any(|(_, name)| name.starts_with(PEFT))
                    || word(&LOW_RANK)
                    || any(&|part| {
                        let parts = [
                            "base_layer",
                            "modules_to_save",
                            "original_module",
                            "ia3_",
                            "vera_",
                            "hada_",
                            "lokr_",
                            "oft_",
                            "boft_",
                            "randlora_",
                            "ln_tuning",
                        ];
                        begins(part, &parts)
                    }),
                Self::Peft,
            ),
            (word(&ADAPTERS), Self::Adapter),
            (
                last(&[
                    "SCB",
                    "absmax",
                    "g_idx",
                    "input_scale",
                    "nested_absmax",
                    "nested_quant_map",
                    "qweight",
                    "qzeros",
                    "quant_map",
                    "scales",
                    "weight_format",
                    "weight_packed",
                    "weight_scale",
                    "weight_scale_inv",
                    "weight_zero_point",
                ]) || any(&|part| begins(part, &["quant_state"])),
                Self::Quantised,
            ),
            (
                last(&["weight_g", "weight_v"]) || any(&|part| part == "parametrizations"),
                Self::Parametrised,
            ),
            (
                last(&["weight_orig", "weight_mask", "bias_orig", "bias_mask"]),
                Self::Pruned,
            ),
            (any(&|part| part == "crossattention"), Self::Decoder),
        ];
        kinds.iter().find(|(is, _)| *is).map(|(_, help)| *help)
    }
}

impl Remedy {
    /// Whose tensors they are that the graph has no place for.
    pub(crate) fn whose(self) -> &'static str {
        match self {
            Self::Input | Self::Unknown => "the checkpoint's",
            _ => "the encoder's",
        }
    }

    /// What follows from their absence.
    pub(crate) fn effect(self) -> &'static str {
        match self {
            Self::Input | Self::Unknown => "may not",
            _ => "would not",
        }
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Peft => {
                "it is a PEFT adapter (LoRA or its like) that is not merged into the weights. In Python, load it with PEFT, then \
                 model.merge_and_unload().save_pretrained(FOLDER), put the tokenizer's files there too, and name that folder"
            }
            Self::Prompt => {
                "it has learned prompts, which stand before each sequence and cannot be merged into the weights: it cannot be exported"
            }
            Self::Adapter => {
                "it has adapters, layers between those of the model, which cannot be merged into the weights: it cannot be exported"
            }
            Self::Quantised => {
                "its weights are quantised. Name the original, or save it again in 32 or 16 bits (in Python, model.dequantize(), \
                 then save_pretrained)"
            }
            Self::Parametrised => {
                "its weights are parametrised (weight norm or its like). In Python, make them plain with \
                 torch.nn.utils.remove_weight_norm or torch.nn.utils.parametrize.remove_parametrizations, and save it again"
            }
            Self::Pruned => {
                "its weights are pruned by masks. In Python, make that permanent with torch.nn.utils.prune.remove, and save it again"
            }
            Self::Decoder => "it is a decoder, with attention to another model's output: it cannot be exported",
            Self::Input => {
                "by its name it makes the encoder's input. If it does not, save the encoder alone (in Python, \
                 model.base_model.save_pretrained(FOLDER)), put the tokenizer's files there too, and name that folder"
            }
            Self::Unknown => {
                "it is beside the encoder, and its name does not say whether it is a head. If it is one, save the encoder alone \
                 (in Python, model.base_model.save_pretrained(FOLDER)), put the tokenizer's files there too, and name that folder"
            }
            Self::Foreign => {
                "no tensor is called as the model's are. Where a wrapper put a prefix before all names (module., model.), save the inner \
                 model's state dict"
            }
            Self::Variant => {
                "it is a variant of the model that computes something else, or was damaged when it was changed: it cannot be exported"
            }
        })
    }
}
