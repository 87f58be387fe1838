//! The command line: one file a subcommand.

pub mod doctor;
pub mod fetch;
