//! The executable: reads the command line, runs the subcommand, says what went wrong.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use seqembed::cli::{
    bench, convert, doctor, embed, export, fetch, models, plot, report, run, say, shell, signals,
    told, virnucpro,
};

/// Embeddings of many protein and DNA files with one load of the model
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    Embed(embed::EmbedArgs),
    Fetch(fetch::FetchArgs),
    Export(export::ExportArgs),
    Models(models::ModelsArgs),
    Virnucpro(virnucpro::VirnucproArgs),
    Plot(plot::PlotArgs),
    Convert(convert::ConvertArgs),
    Report(report::ReportArgs),
    Bench(bench::BenchArgs),
    Doctor(doctor::DoctorArgs),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
}

fn main() -> ExitCode {
    signals::outlive_file_limits();
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Embed(args) => embed::run(&args),
        Command::Fetch(args) => fetch::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Models(args) => models::run(&args),
        Command::Virnucpro(args) => virnucpro::run(&args),
        Command::Plot(args) => plot::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions(args) => shell::completions(&args, Cli::command()),
        Command::Man(args) => shell::man(&args, Cli::command()),
    };
    result.unwrap_or_else(|error| {
        say(&format!("error: {}", told(error.as_ref())));
        ExitCode::FAILURE
    })
}
