//! The executable: reads the command line, runs the subcommand, says what went wrong.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use seqembed::cli::{doctor, fetch};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Fetch(fetch::FetchArgs),
    Doctor(doctor::DoctorArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Fetch(args) => fetch::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
