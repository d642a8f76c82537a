//! `make bench`: what the service costs on top of the bare token, as ratios within one run.
//!
//! Shared machines change their speed from second to second, so every measurement of the service has one of the
//! bare token right before it: processes that call C_Sign without a pause, as many as the service has workers (one
//! for a single call in flight). The table shows medians over the rounds, of the ratios too. Beside them: an empty
//! gRPC call, and one durable record. `verify_before_release` is measured off and on. Options: `--rounds N` (5),
//! `--seconds N` (2), `--json FILE`, and instead of all that `--scale` (10 against 1,000 keys in the token), `--stores`
//! (10 against 10,000 keys in PostgreSQL, SQLite against PostgreSQL, two servers against one), `--jwks` (the key set
//! beside a static answer) or `--wraps` (data keys beside the bare token's AES-GCM, and moving 100,000 envelopes).

#![expect(clippy::print_stdout, reason = "the table is the program's output")]

mod call;
mod cpu;
mod deployment;
mod jwks;
mod load;
mod raw;
mod report;
mod rewraps;
mod scale;
mod service;
mod stores;
mod wraps;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};

use crate::{
    load::Shape,
    raw::Bare,
    report::Report,
    service::{Algorithm, Bench},
};

/// Workers of a development service.
const WORKERS: usize = 2;

struct Options {
    rounds: usize,
    span: Duration,
    json: Option<PathBuf>,
    scale: bool,
    stores: bool,
    jwks: bool,
    wraps: bool,
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1).peekable();
    if args.peek().map(String::as_str) == Some(raw::SUBCOMMAND) {
        return raw::child(args.skip(1).collect());
    }
    if args.peek().map(String::as_str) == Some(jwks::SUBCOMMAND) {
        return jwks::child();
    }
    let options = Options::parse(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(&options))
}

async fn run(options: &Options) -> anyhow::Result<()> {
    if options.scale {
        return scale::run(options.span).await;
    }
    if options.jwks {
        return options.tell(&jwks::run(options.rounds, options.span).await?, jwks::SHARE_OF);
    }
    if options.stores {
        return options.tell(&stores::run(options.rounds, options.span).await?, stores::SHARE_OF);
    }
    if options.wraps {
        return options.tell(&wraps::run(options.rounds, options.span).await?, wraps::SHARE_OF);
    }
    let plain = Bench::start(&[("KMS_KEYS__VERIFY_BEFORE_RELEASE", "false")]).await?;
    let verified = Bench::start(&[]).await?;
    let mut report = Report::default();
    for round in 1..=options.rounds {
        println!("round {round} of {}", options.rounds);
        report.add("fdatasync of 256 bytes", service::fdatasync_latency(plain.dir())?);
        for algorithm in Algorithm::ALL {
            for (verify, bench) in [("off", &plain), ("on", &verified)] {
                for shape in Shape::ALL {
                    let processes = if shape == Shape::Unary(1) { 1 } else { WORKERS };
                    let bare = raw::measure(&plain, Bare::Sign(algorithm), processes, options.span)?;
                    report.add(&format!("{algorithm} bare token, {processes} process(es)"), bare);
                    let row = bench.measure(algorithm, shape, options.span).await?;
                    report.add(&format!("{algorithm} {shape}, verify {verify}"), row.beside(&bare));
                }
            }
        }
        for in_flight in [1, 16, 64] {
            report.add(
                &format!("empty gRPC call, {in_flight} in flight"),
                plain.measure_empty(in_flight, options.span).await?,
            );
        }
    }
    options.tell(&report, "the bare token")
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let span = Duration::from_secs(2);
        let mut options =
            Self { rounds: 5, span, json: None, scale: false, stores: false, jwks: false, wraps: false };
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--rounds" => options.rounds = value()?.parse()?,
                "--seconds" => options.span = Duration::from_secs_f64(value()?.parse()?),
                "--json" => options.json = Some(value()?.into()),
                "--scale" => options.scale = true,
                "--jwks" => options.jwks = true,
                "--stores" => options.stores = true,
                "--wraps" => options.wraps = true,
                _ => bail!("unknown option {arg}; see the head of tests/bench/src/main.rs"),
            }
        }
        Ok(options)
    }

    fn tell(&self, report: &Report, share_of: &str) -> anyhow::Result<()> {
        println!("{}", report.table(share_of));
        if let Some(path) = &self.json {
            std::fs::write(path, report.json()?).with_context(|| path.display().to_string())?;
            println!("written to {}", path.display());
        }
        Ok(())
    }
}
