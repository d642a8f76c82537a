//! What we tell people to type works. Every fenced block of the info string `console` in the README and in docs/ is run,
//! line by line as it stands, in one shell a file, against a service of its own. A block that the comment
//! `<!-- no-test: why -->` precedes is not.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, ensure};
use kms_tests::{Output, PATIENCE, Service};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_documents_works() -> anyhow::Result<()> {
    let mut files = vec![PathBuf::from(ROOT).join("README.md")];
    markdown_below(&PathBuf::from(ROOT).join("docs"), &mut files)?;
    let mut tested = 0;
    for file in files {
        let commands = commands_of(&fs::read_to_string(&file)?);
        if commands.is_empty() {
            continue;
        }
        let service = Service::start().await?;
        run(&service, &commands).await.with_context(|| file.display().to_string())?;
        tested += commands.len();
    }
    ensure!(tested >= 10, "only {tested} commands were found");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_three_commands_that_kms_dev_prints_work() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let log = service.log();
    let (_, rest) = log.split_once("In another terminal:").context("no commands are printed")?;
    let (printed, _) = rest.split_once("Ctrl-C").context("no end")?;
    let commands: Vec<_> =
        printed.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    ensure!(commands.len() == 3, "{commands:#?}");
    ensure!(log.to_lowercase().contains("development only"), "there is no banner: {log}");
    let output = run(&service, &commands).await?;
    let lines: Vec<_> = output.lines().collect();
    ensure!(lines.iter().any(|line| line.split('.').count() == 3), "no token is printed: {output}");
    ensure!(lines.iter().any(|line| line.contains("\"keys\"")), "no JWKS is printed: {output}");
    Ok(())
}

#[test]
fn blocks_are_found_and_excused_as_documented() {
    let text = "```sh\n$ no\n```\n```console\n$ one\noutput\n$ two\n```\n\
                <!-- no-test: why -->\n```console\n$ three\n```\ntext\n```console\n$ four\n```\n";
    assert_eq!(commands_of(text), ["one", "two", "four"]);
}

/// Runs the commands in one shell, in a directory of their own, with the service's environment; returns what they
/// printed.
async fn run(service: &Service, commands: &[String]) -> anyhow::Result<String> {
    let dir = tempfile::tempdir()?;
    let script = format!(". \"$1\"\nset -x\n{}\n", commands.join("\n"));
    let shell = tokio::process::Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script, "bash"])
        .arg(service.dir().join("env"))
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, shell).await.context("a command does not end")??;
    Ok(Output::of("the commands", output).text()?.to_owned())
}

fn commands_of(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut excused = false;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(info) = line.strip_prefix("```") {
            let block: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
            if info == "console" && !excused {
                commands.extend(block.iter().filter_map(|line| line.strip_prefix("$ ")).map(str::to_owned));
            }
        }
        excused = line.starts_with("<!-- no-test");
    }
    commands
}

fn markdown_below(dir: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_type()?.is_dir() {
            markdown_below(&entry.path(), files)?;
        } else if entry.path().extension().is_some_and(|extension| extension == "md") {
            files.push(entry.path());
        }
    }
    Ok(())
}
