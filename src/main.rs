//! The executable: reads the command line, runs the subcommand, says what went wrong.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use seqembed::cli::plot;

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Plot(plot::PlotArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Plot(args) => plot::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
