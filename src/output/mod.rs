//! What is written: rows of embeddings, the trait that every output format implements, and the way
//! back from a file to rows.
//!
//! Files appear atomically: a sink writes to a hidden temporary file in the output folder, and
//! [`Sink::finish`] renames it to its final path. The same rows give the same bytes, independent of
//! the blocks in which they are written.

mod blocks;
mod columns;
mod error;
mod file;
mod formats;
mod h5;
mod layout;
mod matrix_file;
mod npy;
mod npz;
mod parallel;
mod parquet;
mod parquet_pages;
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
mod zip_entry;

pub use error::OutputError;
pub use file::Written;
pub(crate) use file::{Complete, Unfinished, publish, write_text};
pub use formats::{Format, create, open, read};
pub use layout::{COLUMNS, Layout};
pub use precision::OutputPrecision;
pub use reader::Reader;
pub use rows::{Block, Rows};
pub use sink::Sink;
