//! The story of `examples/encrypted-rows`: a table of sealed rows outlives three rotations of its key and the destruction
//! of the key's first version. The example's program moves it, is killed in the middle and started again, and meets a
//! writer. Every row opens to the end, and no byte of a payload is another one than before.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use kms_client::{
    Client,
    envelope::{Column, Envelopes, Policy, inspect},
    v1,
};
use kms_test_postgres::{Cluster, Database};
use kms_tests::{Output, PATIENCE, Plan, Promise, Server, encrypted_rows, pkcs11_tool, until};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, Command},
};

const KEY: &str = "keys/customers";
const CONSUMER: &str = "customers-db";
/// What the writer writes whom the rewrap meets.
const OVERWRITTEN: &[u8] = b"new-address@example.com";

#[tokio::test(flavor = "multi_thread")]
async fn every_row_outlives_three_rotations_and_the_destruction_of_the_first_version_untouched()
-> anyhow::Result<()> {
    let began = Instant::now();
    let rows = Promise::count(10_000, 100_000);
    let mut shop = Shop::open().await?;
    let client = shop.server.client().await?;
    let key = Some(v1::Key { algorithm: "A256GCMKW".into(), ..Default::default() });
    client.create_key(v1::CreateKeyRequest { key_id: "customers".into(), key, ..Default::default() }).await?;
    // Sealed now, and written when three more versions have come.
    let email = Column::new("customers", "email");
    let writer = Envelopes::new(client.clone(), KEY, Policy::default());
    let overwritten = writer.seal_field(&email, rows, OVERWRITTEN).await?;

    // A third of the rows under each of the first three versions; the fourth has to take them all.
    let before = shop.calls().await?;
    let mut filling = Duration::ZERO;
    for (version, part) in [rows - rows / 3 * 2, rows / 3, rows / 3].into_iter().enumerate() {
        let began = Instant::now();
        shop.run(&["fill", "--rows", &part.to_string()]).await?.text()?;
        filling += began.elapsed();
        // A rotation gives the next version its lead, in which the old one wraps on; an emergency has no time for that.
        rotate(&client, version + 2, version != 1).await?;
    }
    let filled = count(&before, &shop.calls().await?, "GenerateDataKey");
    ensure!(filled <= rows / 1_000 + 3, "{filled} data keys were made for {rows} rows");
    ensure!(shop.run(&["read", "--id", "7"]).await?.text()? == "customer-7@example.com");
    let old: Vec<_> = shop.by_version()?.into_keys().collect();
    ensure!(old == [1, 2, 3], "{old:?}");
    let sealed = shop.rows()?;
    ensure!(sealed.len() == rows, "{} rows", sealed.len());
    let backup = sealed.get(&1).context("no row 1")?;
    writer.open_field(&email, 1, backup).await?;

    // What lives on a version keeps it.
    shop.run(&["report"]).await?.text()?;
    let wraps_some = format!("{CONSUMER} reported {} envelopes", rows - rows / 3 * 2);
    refused(destroy(&client, "nobody has looked").await, &wraps_some)?;

    let before = shop.calls().await?;
    let moving = Instant::now();
    let killed_after = shop.rewrap_killed(rows).await?;
    let said = shop.rewrap_beside_a_writer(rows, &overwritten).await?;
    let moved = moving.elapsed();
    let after = shop.calls().await?;
    let left = rows - killed_after;
    ensure!(said.starts_with(&format!("{left} rows moved, 1 left to other writers")), "{said}");

    // No row is left on an old version, by the column and by the envelopes, and every one opens.
    ensure!(shop.by_version()? == BTreeMap::from([(4, rows)]), "{:?}", shop.by_version()?);
    let verified = format!("{rows} rows open\nversion 4: {rows}");
    ensure!(shop.run(&["verify"]).await?.text()? == verified);
    let unwrapped = count(&after, &shop.calls().await?, "UnwrapKey");
    ensure!(shop.run(&["read", "--id", &rows.to_string()]).await?.text()?.as_bytes() == OVERWRITTEN);
    let differing = differing(&sealed, &shop.rows()?, (rows, &overwritten))?;
    ensure!(differing == 0, "{differing} payloads differ");

    // The report of before still counts; after one of now nothing does but the quiet period and the attestation.
    refused(destroy(&client, "nobody has looked").await, &wraps_some)?;
    until("nothing speaks against its destruction", PATIENCE, async || {
        shop.run(&["report"]).await?.text()?;
        let usage = client.get_key_usage(v1::GetKeyUsageRequest { name: KEY.into() }).await?;
        let first = usage.versions.first().context("no version")?;
        Ok(first.destruction_blockers.is_empty().then_some(()))
    })
    .await?;
    refused(destroy(&client, "").await, "who has looked")?;
    let cka_id = shop.cka_id(1).await?;
    let alone = destroy(&client, "the nightly dumps of before were deleted").await;
    let alone = alone.map(drop).err().context("one alone destroys")?;
    shop.server.consent(alone.message()).await?;
    until("it is gone from the token", PATIENCE, async || {
        let listing = pkcs11_tool(&shop.server.plan.token, &["--list-objects"])?;
        Ok((!listing.text()?.contains(&cka_id)).then_some(()))
    })
    .await?;
    let first = until("its row says so", PATIENCE, async || {
        let usage = client.get_key_usage(v1::GetKeyUsageRequest { name: KEY.into() }).await?;
        let first = usage.versions.into_iter().next().context("no version")?;
        Ok((first.state() == v1::key_version::State::Destroyed).then_some(first))
    })
    .await?;
    ensure!(first.envelopes == 0, "{first:?}");

    ensure!(shop.run(&["verify"]).await?.text()? == verified, "a row was lost with the version");
    let opened = Envelopes::new(client, KEY, Policy::default()).open_field(&email, 1, backup).await;
    ensure!(opened.is_err(), "a backup of before opens without its version");
    kept(
        format!(
            "{rows} sealed rows of PostgreSQL, 3 rotations; the rewrap loop killed after {killed_after} rows and run \
             again; version 1 destroyed"
        ),
        format!(
            "sealed in {:.1} s with {filled} calls; moved in {:.1} s with {} calls for batches and {} for the version that \
             wraps; 0 rows on old versions, 0 payloads changed; all {rows} open, with {unwrapped} calls, and the copy of a \
             row of before does not",
            filling.as_secs_f64(),
            moved.as_secs_f64(),
            count(&before, &after, "BatchRewrapKey"),
            count(&before, &after, "GetKey"),
        ),
        began,
    );
    shop.server.running.terminate().await?;
    Ok(())
}

/// A service, and a database of somebody else.
struct Shop {
    server: Server,
    cluster: Cluster,
    database: Database,
    /// libpq's file of passwords.
    passwords: PathBuf,
}

impl Shop {
    async fn open() -> anyhow::Result<Self> {
        let mut plan = Plan::new()?;
        let keys = "allow_destroy = true\ndestroy_delay = \"1s\"\nunwrap_quiet_period = \"5s\"";
        plan.more.push(("keys", keys.to_owned()));
        plan.bootstrap().await?;
        let cluster = Cluster::start()?;
        let database = cluster.create_database()?;
        let passwords = plan.dir().join("passwords");
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&passwords)?;
        writeln!(file, "*:*:{}:{}:{}", database.name, database.user, database.password())?;
        Ok(Self { server: plan.start().await?, cluster, database, passwords })
    }

    fn url(&self) -> String {
        self.database.url_at(self.cluster.addr())
    }

    /// The example's program.
    fn example(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(encrypted_rows()?);
        command
            .args(arguments)
            .env("KMS_ADDR", &self.server.addr)
            .env("KMS_CACERT", &self.server.ca_file)
            .env("KMS_TOKEN_FILE", &self.server.token_file)
            .env("DATABASE_URL", self.url())
            .env("PGPASSFILE", &self.passwords)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Ok(command)
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let output = self.example(arguments)?.output().await?;
        Ok(Output::of(format!("encrypted-rows {}", arguments.join(" ")), output))
    }

    fn sql(&self, text: &str) -> anyhow::Result<String> {
        self.cluster.sql(&self.database.name, text)
    }

    fn by_version(&self) -> anyhow::Result<BTreeMap<u32, usize>> {
        let counted =
            self.sql("SELECT email_key_version, count(*) FROM customers GROUP BY email_key_version;")?;
        let number = |line: &str| {
            let (version, count) = line.split_once('|').context("no count")?;
            Ok((version.parse()?, count.parse()?))
        };
        counted.lines().map(number).collect()
    }

    /// The envelope of each row.
    fn rows(&self) -> anyhow::Result<BTreeMap<usize, Vec<u8>>> {
        let rows = self.sql("SELECT id, encode(email, 'hex') FROM customers;")?;
        let row = |line: &str| {
            let (id, email) = line.split_once('|').context("no address")?;
            let byte = |at: usize| u8::from_str_radix(&email[at..at + 2], 16);
            Ok((id.parse()?, (0..email.len()).step_by(2).map(byte).collect::<Result<_, _>>()?))
        };
        rows.lines().map(row).collect()
    }

    /// Starts the rewrap loop and kills it in the middle, where it waits for a row; how many rows it has moved.
    async fn rewrap_killed(&self, rows: usize) -> anyhow::Result<usize> {
        let held = self.hold(&format!("UPDATE customers SET note = note WHERE id = {}", rows / 2)).await?;
        let mut rewrap = self.example(&["rewrap"])?.spawn()?;
        self.somebody_waits().await?;
        rewrap.kill().await?;
        held.commit().await?;
        // PostgreSQL does to the end what it was told before.
        let sessions =
            format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{}';", self.database.user);
        until("its session ends", PATIENCE, async || Ok((self.sql(&sessions)? == "0").then_some(()))).await?;
        let moved = self.by_version()?.remove(&4).unwrap_or_default();
        ensure!(moved >= rows / 2 && moved < rows, "it was killed after {moved} of {rows} rows");
        Ok(moved)
    }

    /// Runs the rewrap loop while somebody writes the row `id`, who commits when the loop waits for the row; what the
    /// loop says at its end.
    async fn rewrap_beside_a_writer(&self, id: usize, email: &[u8]) -> anyhow::Result<String> {
        ensure!(version_of(email)? == 1, "the writer has a newer version");
        let email: String = email.iter().map(|byte| format!("{byte:02x}")).collect();
        let write =
            format!("UPDATE customers SET email = '\\x{email}', email_key_version = 1 WHERE id = {id}");
        let held = self.hold(&write).await?;
        let rewrap = self.example(&["rewrap"])?.spawn()?;
        self.somebody_waits().await?;
        held.commit().await?;
        let output = Output::of("encrypted-rows rewrap", rewrap.wait_with_output().await?);
        Ok(output.text()?.to_owned())
    }

    /// Another session, which has done `statement` and not committed it.
    async fn hold(&self, statement: &str) -> anyhow::Result<Held> {
        let mut psql = Command::from(self.cluster.psql(&self.url()));
        psql.env("PGPASSWORD", self.database.password()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut psql = psql.kill_on_drop(true).spawn()?;
        let mut input = psql.stdin.take().context("no input")?;
        input.write_all(format!("BEGIN; {statement}; SELECT 'held';\n").as_bytes()).await?;
        let said = BufReader::new(psql.stdout.take().context("no output")?).lines().next_line().await?;
        ensure!(said.as_deref() == Some("held"), "{said:?}");
        Ok(Held { psql, input })
    }

    async fn somebody_waits(&self) -> anyhow::Result<()> {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock';";
        until("somebody waits for a row", PATIENCE, async || Ok((self.sql(waits)? != "0").then_some(())))
            .await
    }

    /// Calls that the service has answered, by method.
    async fn calls(&self) -> anyhow::Result<BTreeMap<String, usize>> {
        let text = self.server.get("/metrics").await?.error_for_status()?.text().await?;
        let mut calls = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with("kms_grpc_requests_total{")) {
            let (labels, number) = line.rsplit_once(' ').context("no number")?;
            let (_, method) = labels.split_once("method=\"").context("no method")?;
            let method = method.split('"').next().unwrap_or_default();
            let method = method.rsplit('/').next().unwrap_or_default();
            *calls.entry(method.to_owned()).or_default() += number.parse::<usize>()?;
        }
        Ok(calls)
    }

    async fn cka_id(&self, version: u32) -> anyhow::Result<String> {
        let inventory = self.server.kms(["hsm", "inventory", "-o", "json"]).await?.json()?;
        let name = format!("{KEY}/versions/{version}");
        let objects = inventory.as_array().context("a list")?;
        let object = objects.iter().find(|object| object["key_version"] == name.as_str());
        let cka_id = object.and_then(|object| object["cka_id"].as_str()).context("it is not in the token")?;
        let listing = pkcs11_tool(&self.server.plan.token, &["--list-objects"])?;
        ensure!(listing.text()?.contains(cka_id), "pkcs11-tool does not show {cka_id}:\n{}", listing.stdout);
        Ok(cka_id.to_owned())
    }
}

/// A session in a transaction.
struct Held {
    psql: Child,
    input: ChildStdin,
}

impl Held {
    async fn commit(mut self) -> anyhow::Result<()> {
        self.input.write_all(b"COMMIT;\n").await?;
        drop(self.input);
        ensure!(self.psql.wait().await?.success(), "the session failed");
        Ok(())
    }
}

async fn rotate(client: &Client, to: usize, emergency: bool) -> anyhow::Result<()> {
    client.rotate_key(v1::RotateKeyRequest { name: KEY.into(), emergency, ..Default::default() }).await?;
    until("the next version wraps", PATIENCE, async || {
        let key = client.get_key(v1::GetKeyRequest { name: KEY.into() }).await?;
        Ok((key.primary == format!("{KEY}/versions/{to}")).then_some(()))
    })
    .await
}

/// Asks for the destruction of the first version.
async fn destroy(client: &Client, attestation: &str) -> Result<v1::KeyVersion, kms_client::Error> {
    let name = format!("{KEY}/versions/1");
    let request = v1::DestroyKeyVersionRequest {
        confirm: name.clone(),
        name,
        attestation: attestation.to_owned(),
        ..Default::default()
    };
    client.destroy_key_version(request).await
}

fn refused(answer: Result<v1::KeyVersion, kms_client::Error>, says: &str) -> anyhow::Result<()> {
    let Err(error) = answer else { bail!("it was not refused, though {says}") };
    ensure!(format!("{error:?}").contains(says), "it does not say {says:?}: {error:?}");
    Ok(())
}

/// How many payloads, all that follows an envelope's header, are not what they were. One row was overwritten.
fn differing(
    before: &BTreeMap<usize, Vec<u8>>,
    after: &BTreeMap<usize, Vec<u8>>,
    (id, overwritten): (usize, &[u8]),
) -> anyhow::Result<usize> {
    fn payload(envelope: &[u8]) -> anyhow::Result<&[u8]> {
        Ok(&envelope[inspect(envelope)?.to_bytes().len()..])
    }
    ensure!(before.len() == after.len(), "{} rows were {}", after.len(), before.len());
    let mut differing = 0;
    for (row, is) in after {
        ensure!(version_of(is)? == 4, "row {row} was not moved");
        let was = if *row == id { overwritten } else { before.get(row).context("a new row")? };
        ensure!(was != is, "row {row} was moved and is the same");
        differing += usize::from(payload(was)? != payload(is)?);
    }
    Ok(differing)
}

fn count(before: &BTreeMap<String, usize>, after: &BTreeMap<String, usize>, method: &str) -> usize {
    let of = |calls: &BTreeMap<String, usize>| calls.get(method).copied().unwrap_or_default();
    of(after) - of(before)
}

/// The line that `make torture` gathers. It is no promise with a number, and has no chance in it.
#[expect(clippy::print_stdout, reason = "make torture gathers these lines")]
fn kept(what: String, figure: String, began: Instant) {
    println!("\nPROMISE | | {what} | {figure} | | {} s |", began.elapsed().as_secs());
}

/// The version that wraps the data key of an envelope with one recipient.
fn version_of(envelope: &[u8]) -> anyhow::Result<u32> {
    let header = inspect(envelope)?;
    ensure!(header.recipients().len() == 1, "it has several recipients");
    Ok(header.recipients()[0].header().key_version.get())
}
