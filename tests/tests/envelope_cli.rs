//! `kms envelope` on files: what was sealed opens again, what was changed does not, and nothing plausible is left where
//! something went wrong. Rewrap campaigns are in `rewrap_cli.rs`.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, ensure};
use kms_tests::{Desk, Output, PATIENCE, kms, refused, until};

const CHUNK_LEN: usize = 65_536;
/// One chunk with its tag.
const SEALED_CHUNK_LEN: usize = CHUNK_LEN + 16;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// It does not open, and says so with exit code 7.
fn does_not_open(output: &Output) -> anyhow::Result<()> {
    ensure!(output.code == Some(7), "{output:?}");
    refused(output, &["error: "])
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_every_size_come_back_as_they_were() -> anyhow::Result<()> {
    let desk = Desk::new().await?;
    let context = "--context tenant=acme --payload-context path=x";
    for len in [0, 1, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 200 * 1024] {
        let name = format!("f{len}");
        desk.write(&name, pattern(len))?;
        desk.run(&format!("envelope seal {context} {name}"))?.text()?;
        fs::remove_file(desk.path(&name))?;
        desk.run(&format!("envelope open {context} {name}.sealed"))?.text()?;
        ensure!(desk.read(&name)? == pattern(len), "{len} bytes came back as others");
        let mode = fs::metadata(desk.path(&name))?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "others can read a plaintext: {mode:o}");
        let shown = desk.json(&format!("envelope inspect {name}.sealed"))?;
        ensure!(shown[0]["plaintext_bytes"] == len && shown[0]["key_version"] == 1, "{shown}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pipes_seal_and_open_and_a_missing_end_is_an_error() -> anyhow::Result<()> {
    let desk = Desk::new().await?;
    for len in [0, 200 * 1024] {
        let (output, sealed) = desk.bytes("envelope seal -", &pattern(len))?;
        output.text()?;
        let (output, opened) = desk.bytes("envelope open -", &sealed)?;
        ensure!(output.code == Some(0) && opened == pattern(len), "{len}: {output:?}");
    }
    let (_, sealed) = desk.bytes("envelope seal -", &pattern(200 * 1024))?;
    for cut in [0, 3, 100, sealed.len() - 2 * SEALED_CHUNK_LEN, sealed.len() - 1] {
        let (output, opened) = desk.bytes("envelope open -", &sealed[..cut])?;
        does_not_open(&output)?;
        ensure!(pattern(200 * 1024).starts_with(&opened), "what came out was never in there");
    }
    let output = desk.pipe("envelope open - --out /dev/full", &sealed)?;
    ensure!(output.code == Some(1), "a full device is no error: {output:?}");
    ensure!(fs::metadata("/dev/full")?.permissions().mode() & 0o170_000 == 0o020_000, "it was replaced");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_does_not_open_and_leaves_nothing() -> anyhow::Result<()> {
    let desk = Desk::new().await?;
    let plain = pattern(3 * CHUNK_LEN + 5);
    let (output, sealed) =
        desk.bytes("envelope seal - --context tenant=acme --payload-context row=1", &plain)?;
    output.text()?;
    let header = sealed.len() - 3 * SEALED_CHUNK_LEN - 21;
    let chunk =
        |number: usize| &sealed[header + number * SEALED_CHUNK_LEN..header + (number + 1) * SEALED_CHUNK_LEN];
    let mut changed: Vec<(String, Vec<u8>)> = vec![
        ("extended".into(), [&sealed[..], b"x"].concat()),
        ("doubled".into(), [&sealed[..], &sealed[..]].concat()),
        (
            "reordered".into(),
            [&sealed[..header], chunk(1), chunk(0), &sealed[header + 2 * SEALED_CHUNK_LEN..]].concat(),
        ),
        (
            "without a chunk".into(),
            [&sealed[..header], chunk(1), &sealed[header + 2 * SEALED_CHUNK_LEN..]].concat(),
        ),
    ];
    for at in
        [0, 4, 5, 6, 7, 10, 30, 60, 95, 130, header - 1, header, header + SEALED_CHUNK_LEN, sealed.len() - 1]
    {
        let mut flipped = sealed.clone();
        flipped[at] ^= 1;
        changed.push((format!("flipped at {at}"), flipped));
    }
    for cut in [
        0,
        1,
        87,
        header - 1,
        header,
        header + 15,
        header + SEALED_CHUNK_LEN,
        sealed.len() - 21,
        sealed.len() - 1,
    ] {
        changed.push((format!("cut at {cut}"), sealed[..cut].to_vec()));
    }
    let contexts = "--context tenant=acme --payload-context row=1";
    for (what, bytes) in &changed {
        desk.write("a.sealed", bytes)?;
        let output = desk.run(&format!("envelope open {contexts} a.sealed"))?;
        does_not_open(&output).with_context(|| what.clone())?;
        ensure!(desk.names("")? == ["a.sealed"], "{what} left something: {:?}", desk.names("")?);
    }
    desk.write("a.sealed", &sealed)?;
    desk.run("keys create others --algorithm A256GCMKW")?.text()?;
    for wrong in [
        "",
        "--context tenant=acme",
        "--context tenant=other --payload-context row=1",
        "--context tenant=acme --payload-context row=2",
        "--context row=1 --payload-context tenant=acme",
        "--context tenant=acme --payload-context row=1 --key others",
    ] {
        let output = desk.run(format!("envelope open a.sealed {wrong}").trim_end())?;
        does_not_open(&output).with_context(|| wrong.to_owned())?;
        ensure!(desk.names("")? == ["a.sealed"], "{wrong:?} left something");
    }
    desk.run(&format!("envelope open {contexts} a.sealed"))?.text()?;
    ensure!(desk.read("a")? == plain);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_are_done_as_far_as_they_can_be_and_nothing_is_written_over() -> anyhow::Result<()> {
    let desk = Desk::new().await?;
    for name in ["d/a", "d/b", "d/sub/c"] {
        desk.write(name, name)?;
    }
    std::os::unix::fs::symlink("a", desk.path("d/link"))?;
    let output = desk.run("envelope seal d")?;
    ensure!(output.code == Some(2), "{output:?}");
    refused(&output, &["is a folder", "--recursive"])?;
    refused(&desk.run("envelope seal d/link")?, &["symbolic link"])?;

    let done = desk.run("envelope seal --recursive d")?;
    ensure!(done.text()?.starts_with("sealed 3 files") && done.stderr.contains("not followed"), "{done:?}");
    let again = desk.run("envelope seal --recursive d")?;
    ensure!(again.code == Some(1) && again.stdout.contains("3 failed"), "{again:?}");
    let skipped = desk.json("envelope seal --recursive --existing skip d")?;
    ensure!(skipped["there_already"] == 3 && skipped["files"] == 0, "{skipped}");

    // One is broken, one is in the way: the third is done.
    let broken = desk.read("d/a.sealed")?;
    desk.write("d/a.sealed", &broken[..broken.len() - 1])?;
    fs::remove_file(desk.path("d/a"))?;
    fs::remove_file(desk.path("d/sub/c"))?;
    desk.write("d/b", "mine")?;
    let output = desk.run("envelope open --recursive d")?;
    ensure!(output.code == Some(1), "{output:?}");
    refused(&output, &["a.sealed", "b exists already", "2 files failed"])?;
    ensure!(desk.read("d/sub/c")? == b"d/sub/c" && desk.read("d/b")? == b"mine", "written over");
    ensure!(!desk.path("d/a").exists(), "half a file");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_open_leaves_only_what_the_next_run_removes() -> anyhow::Result<()> {
    let desk = Desk::new().await?;
    let plain = pattern(4 * CHUNK_LEN);
    let (output, sealed) = desk.bytes("envelope seal -", &plain)?;
    output.text()?;
    let mut child = desk.command("envelope open - --out plain")?.spawn()?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    // Half of it, and then nothing more comes.
    let half = sealed.len() - 2 * SEALED_CHUNK_LEN;
    let feeding = std::thread::spawn({
        let sealed = sealed.clone();
        move || std::io::Write::write_all(&mut stdin, &sealed[..half]).map(|()| stdin)
    });
    let partial = until("a chunk is written", PATIENCE, async || {
        let names = desk.names("")?;
        let grown = |name: &&String| fs::metadata(desk.path(name)).is_ok_and(|file| file.len() > 0);
        Ok(names.iter().find(|name| name.starts_with(".plain.kms-partial-")).filter(grown).cloned())
    })
    .await?;
    let mode = fs::metadata(desk.path(&partial))?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "others can read half a plaintext: {mode:o}");

    // Somebody else's run does not take it away while it lives.
    desk.pipe("envelope open - --out other", &sealed)?.text()?;
    ensure!(desk.names("")? == [partial.as_str(), "other"], "{:?}", desk.names("")?);

    child.kill()?;
    let status = child.wait()?;
    ensure!(status.signal() == Some(9), "{status}");
    drop(feeding.join());
    ensure!(desk.names("")? == [partial.as_str(), "other"], "{:?}", desk.names("")?);
    desk.pipe("envelope open - --out plain", &sealed)?.text()?;
    ensure!(desk.names("")? == ["other", "plain"] && desk.read("plain")? == plain);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_leaves_what_was_there() -> anyhow::Result<()> {
    let desk = Desk::new().await?;
    let plain = pattern(300 * 1024);
    desk.write("a", &plain)?;
    desk.run("envelope seal a")?.text()?;
    let sealed = desk.read("a.sealed")?;
    for line in ["envelope open --existing replace a.sealed", "envelope seal --existing replace a"] {
        let output = with_file_limit(&desk, 128, line)?;
        ensure!(output.code == Some(1), "{output:?}");
        refused(&output, &["error: "])?;
        ensure!(desk.names("")? == ["a", "a.sealed"], "{line} left something: {:?}", desk.names("")?);
        ensure!(desk.read("a")? == plain && desk.read("a.sealed")? == sealed, "{line} changed something");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_shown_without_any_service() -> anyhow::Result<()> {
    let desk = Desk::new().await?;
    desk.write("d/a", "a")?;
    desk.write("d/readme", "no envelope")?;
    desk.run("envelope seal d/a")?.text()?;
    let alone = |line: &str| -> anyhow::Result<Output> {
        let mut command = Command::new(kms()?);
        command.args(line.split(' ')).env_clear().current_dir(desk.path(""));
        Ok(Output::of(line, command.output()?))
    };
    let shown = alone("envelope inspect --recursive d -o json")?.json()?;
    let uid = desk.json("keys get files")?["uid"].clone();
    ensure!(shown.as_array().is_some_and(|all| all.len() == 1), "{shown}");
    ensure!(shown[0]["key_uid"] == uid && shown[0]["purpose"] == "native", "{shown}");
    does_not_open(&alone("envelope inspect d/readme")?)
}

/// Runs `kms` in a shell where no file may become longer than so many KiB, and where that is an error of the write, as it
/// is on a full disk.
fn with_file_limit(desk: &Desk, kib: u32, line: &str) -> anyhow::Result<Output> {
    let mut command = desk.command_of(Path::new("bash"), desk, "-c")?;
    let script = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$0\" {line}");
    Ok(Output::of(line, command.arg(script).arg(kms()?).output()?))
}
