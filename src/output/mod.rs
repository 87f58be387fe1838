//! What is written: rows of embeddings, the trait that every output format implements, and the way
//! back from a file to rows.
//!
//! Every file appears by rename, whole or not at all: a sink writes to a hidden temporary file in
//! the output folder and [`Sink::finish`] moves it to its final name. The same rows give the same
//! bytes, whatever the blocks they came in.

mod blocks;
mod error;
mod file;
mod formats;
mod h5;
mod layout;
mod npy;
mod npz;
mod parquet;
mod pickle;
mod precision;
mod pt;
mod reader;
mod rows;
mod safetensors;
mod sink;
mod table;
mod torch_archive;
pub mod virnucpro;

pub use error::OutputError;
pub use file::Written;
pub(crate) use file::{Unfinished, publish, write_text};
pub use formats::{Format, create, open, read};
pub use layout::Layout;
pub use precision::OutputPrecision;
pub use reader::Reader;
pub use rows::Rows;
pub use sink::Sink;
