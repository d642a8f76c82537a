//! `kms envelope rewrap`: a campaign over files. Payloads are not touched, what fails stops no other, and a killed run
//! leaves every file whole.

use std::{
    fs::{self, File},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::ExitStatusExt as _,
    },
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, ensure};
use kms_tests::{Desk, Output, PATIENCE, kms, refused, until};
use serde_json::{Value, json};

/// Of an envelope with one recipient of A256GCMKW: what a rewrap replaces is before this, the payload after it.
const HEADER_LEN: usize = 88 + 2 + 78 + 60;

/// More than two batches, and some of the sizes that files have.
async fn desk_with_files(count: usize) -> anyhow::Result<Desk> {
    let desk = Desk::new().await?;
    for number in 0..count {
        let len = [0, 1, 1_000, 70_000][number % 4];
        desk.write(&format!("d/sub{}/f{number}", number % 3), vec![b'x'; len])?;
    }
    desk.run("envelope seal --recursive d")?.text()?;
    Ok(desk)
}

fn sealed_files(desk: &Desk) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for folder in desk.names("d")? {
        let names = desk.names(&format!("d/{folder}"))?;
        all.extend(names.into_iter().filter(|n| n.ends_with(".sealed")).map(|n| format!("d/{folder}/{n}")));
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_campaign_moves_all_files_touches_no_payload_and_reports_what_is_where() -> anyhow::Result<()> {
    let count = 300;
    let desk = desk_with_files(count).await?;
    let files = sealed_files(&desk)?;
    ensure!(files.len() == count, "{}", files.len());
    let before: Vec<_> = files.iter().map(|file| desk.read(file)).collect::<Result<_, _>>()?;
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    File::options().write(true).open(desk.path(&files[7]))?.set_modified(long_ago)?;
    fs::set_permissions(desk.path(&files[7]), fs::Permissions::from_mode(0o640))?;
    let owner = rustix::process::geteuid().is_root();
    if owner {
        std::os::unix::fs::chown(desk.path(&files[7]), Some(12), Some(34))?;
    }
    ensure!(desk.rotate().await? == 2);

    let moved = desk.json("envelope rewrap --recursive --consumer archive d")?;
    ensure!(moved["moved"] == count && moved["failed"] == 0, "{moved}");
    ensure!(moved["payload_bytes_reencrypted"] == 0, "{moved}");
    ensure!(moved["no_envelopes"] == count && moved["files_by_version"] == json!({"2": count}), "{moved}");
    for (file, before) in files.iter().zip(&before) {
        let after = desk.read(file)?;
        ensure!(after[HEADER_LEN..] == before[HEADER_LEN..], "{file}: the payload changed");
        ensure!(after[..88] == before[..88] && after[..HEADER_LEN] != before[..HEADER_LEN], "{file}");
    }
    let kept = fs::metadata(desk.path(&files[7]))?;
    ensure!(kept.modified()? == long_ago && kept.permissions().mode() & 0o7777 == 0o640, "{kept:?}");
    ensure!(!owner || (kept.uid(), kept.gid()) == (12, 34), "{kept:?}");

    let again = desk.json("envelope rewrap --recursive --consumer archive d")?;
    ensure!(again["moved"] == 0 && again["there_already"] == count, "{again}");
    let usage = desk.json("keys usage files")?;
    ensure!(usage["consumers"][0]["envelopes"]["2"] == count, "{usage}");
    ensure!(usage["versions"][0]["envelopes"] == 0 && usage["versions"][1]["primary"] == true, "{usage}");
    let opened = desk.json("envelope open --recursive --existing replace d")?;
    ensure!(opened["files"] == count, "{opened}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_files_stop_no_other_and_what_is_unknown_is_not_reported() -> anyhow::Result<()> {
    let desk = desk_with_files(6).await?;
    let files = sealed_files(&desk)?;
    desk.run("keys create others --algorithm A256GCMKW")?.text()?;
    desk.write("d/other", "x")?;
    desk.run("envelope seal --key others d/other")?.text()?;
    let cut = desk.read(&files[0])?;
    desk.write(&files[0], &cut[..100])?;
    let mut flipped = desk.read(&files[1])?;
    // In the wrapped key's ciphertext: only the HSM can tell.
    flipped[HEADER_LEN - 20] ^= 1;
    desk.write(&files[1], &flipped)?;
    fs::hard_link(desk.path(&files[2]), desk.path("another-name"))?;
    std::os::unix::fs::symlink(desk.path(&files[3]), desk.path("d/link.sealed"))?;
    desk.rotate().await?;

    let output = desk.run("envelope rewrap --recursive --consumer archive d -o json")?;
    ensure!(output.code == Some(1), "{output:?}");
    refused(
        &output,
        &["3 files failed", "is not reported", "not followed", "hard links", "cut off", "does not open"],
    )?;
    let summary: Value = serde_json::from_str(&output.stdout)?;
    ensure!(summary["moved"] == 3 && summary["of_other_keys"] == 1, "{summary}");
    ensure!(summary["failures"].as_array().is_some_and(|all| all.len() == 3), "{summary}");
    ensure!(desk.read(&files[0])? == cut[..100] && desk.read(&files[1])? == flipped, "they were changed");
    let usage = desk.json("keys usage files")?;
    ensure!(usage["consumers"] == json!([]), "{usage}");

    // Where it is known, it is reported: also of what could not be moved.
    fs::remove_file(desk.path(&files[0]))?;
    let output = desk.run("envelope rewrap --recursive --consumer archive d")?;
    ensure!(output.code == Some(1), "{output:?}");
    let usage = desk.json("keys usage files")?;
    ensure!(usage["consumers"][0]["envelopes"] == json!({"1": 2, "2": 3}), "{usage}");

    let named = desk.run("envelope rewrap d/other.sealed")?;
    ensure!(named.code == Some(2), "{named:?}");
    refused(&named, &["another key's"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_campaign_leaves_every_file_whole_and_the_same_command_does_the_rest() -> anyhow::Result<()>
{
    let desk = desk_with_files(12).await?;
    desk.rotate().await?;
    let mut child = desk.command("envelope rewrap --recursive --rate 2 d")?.spawn()?;
    let moved = |desk: &Desk| -> anyhow::Result<usize> {
        let shown = desk.json("envelope inspect --recursive d")?;
        let all = shown.as_array().context("a list")?;
        ensure!(all.len() == 12, "a file is gone or not whole: {shown}");
        Ok(all.iter().filter(|one| one["key_version"] == 2).count())
    };
    until("some are moved", PATIENCE, async || Ok((moved(&desk)? >= 2).then_some(()))).await?;
    child.kill()?;
    ensure!(child.wait()?.signal() == Some(9), "it was through: make --rate smaller");
    let first = moved(&desk)?;
    ensure!(first < 12, "nothing was left to do");
    let opened = desk.json("envelope open --recursive --existing replace d")?;
    ensure!(opened["files"] == 12, "{opened}");
    let rest = desk.json("envelope rewrap --recursive d")?;
    ensure!(rest["moved"] == 12 - first && rest["there_already"] == first, "{rest}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_writes_it_leaves_the_original_and_nothing_plausible() -> anyhow::Result<()> {
    let desk = Desk::new().await?;
    desk.write("d/big", vec![7; 64 << 20])?;
    desk.run("envelope seal d/big")?.text()?;
    fs::remove_file(desk.path("d/big"))?;
    let original = desk.read("d/big.sealed")?;
    desk.rotate().await?;
    // The moment is between the first byte of the copy and its rename; some runs may be faster than this looks.
    let mut caught = false;
    for _ in 0..20 {
        desk.write("d/big.sealed", &original)?;
        let mut child = desk.command("envelope rewrap d/big.sealed")?.spawn()?;
        until("it writes, or is through", PATIENCE, async || {
            let writes = desk.names("d")?.len() > 1;
            Ok((writes || child.try_wait()?.is_some()).then_some(()))
        })
        .await?;
        child.kill()?;
        caught = child.wait()?.signal() == Some(9) && desk.names("d")?.len() > 1;
        if caught {
            break;
        }
    }
    ensure!(caught, "it was never caught in the middle");
    ensure!(desk.read("d/big.sealed")? == original, "the original is not what it was");
    let names = desk.names("d")?;
    ensure!(names[0].starts_with(".big.sealed.kms-partial-") && names.len() == 2, "{names:?}");
    desk.run("envelope rewrap --recursive d")?.text()?;
    ensure!(desk.names("d")? == ["big.sealed"], "{:?}", desk.names("d")?);
    ensure!(desk.read("d/big.sealed")?[HEADER_LEN..] == original[HEADER_LEN..], "the payload changed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_leaves_the_original() -> anyhow::Result<()> {
    let desk = Desk::new().await?;
    for name in ["d/a", "d/b", "d/c"] {
        desk.write(name, vec![1; if name == "d/b" { 300 * 1024 } else { 10 }])?;
    }
    desk.run("envelope seal --recursive d")?.text()?;
    let original = desk.read("d/b.sealed")?;
    desk.rotate().await?;
    let mut command = desk.command_of(Path::new("bash"), &desk, "-c")?;
    let script = "trap '' XFSZ; ulimit -f 128; exec \"$0\" envelope rewrap --recursive d -o json";
    let output = Output::of(script, command.arg(script).arg(kms()?).output()?);
    ensure!(output.code == Some(1), "{output:?}");
    refused(&output, &["b.sealed", "1 file failed"])?;
    ensure!(desk.read("d/b.sealed")? == original, "the original is not what it was");
    ensure!(desk.names("d")?.len() == 6, "{:?}", desk.names("d")?);
    let rest = desk.json("envelope rewrap --recursive d")?;
    ensure!(rest["moved"] == 1 && rest["there_already"] == 2, "{rest}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_compromise_only_a_recoverer_moves_files_and_then_everybody_opens_them() -> anyhow::Result<()>
{
    let desk = desk_with_files(4).await?;
    let (user, recoverer) = (desk.with_role("user")?, desk.with_role("recoverer")?);
    let revoked = desk.run("keys revoke files --version 1 --reason stolen")?;
    revoked.text()?;
    for said in ["kms envelope rewrap --key files --recursive", "--role recoverer --key files", "sealed anew"]
    {
        ensure!(revoked.stderr.contains(said), "it does not say {said:?}: {}", revoked.stderr);
    }
    until("another version wraps", PATIENCE, async || {
        let primary = &desk.json("keys get files")?["primary"];
        Ok((*primary == "keys/files/versions/2").then_some(()))
    })
    .await?;
    let output = desk.run_as(&user, "envelope open --recursive --existing replace d", b"")?;
    ensure!(output.code == Some(1) && output.stdout.starts_with("opened 0 files"), "{output:?}");
    let output = desk.run_as(&user, "envelope rewrap --recursive d", b"")?;
    ensure!(output.code == Some(1) && output.stdout.starts_with("0 files moved"), "{output:?}");
    refused(&output, &["role recoverer"])?;
    let output = desk.run_as(&recoverer, "envelope rewrap --recursive d", b"")?;
    ensure!(output.text()?.starts_with("4 files moved"), "{output:?}");
    let output = desk.run_as(&user, "envelope open --recursive --existing replace d", b"")?;
    ensure!(output.text()?.starts_with("opened 4 files"), "{output:?}");
    Ok(())
}
