//! The list of model families: a new one is a file of its own and a line here. Known models are
//! listed in this order.

#[macro_use]
mod registry;
pub mod architecture;
pub mod attention;
pub mod blocks;
pub mod catalog;
pub mod config;
mod contact_maps;
pub mod esm;
pub mod family;
pub mod kmers;
pub mod known_values;
pub mod learned_positions;
pub mod own_vocabulary;
pub mod post_norm;
pub mod pre_norm;
pub mod sample_bpe;
pub mod sizes;

families! {
    esm1::Esm1,
    esm2::Esm2,
    esmc::Esmc,
    bert::Bert,
    dnabert2::Dnabert2,
    nucleotide_transformer::NucleotideTransformer,
    saprot::Saprot,
    amplify::Amplify,
    t5::T5,
}
