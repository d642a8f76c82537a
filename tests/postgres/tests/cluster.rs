//! A cluster lives, is killed, hangs, and leaves nothing behind.

use std::{fs, thread, time::Instant};

use anyhow::{Context as _, ensure};
use kms_test_postgres::{Cluster, Database};

#[test]
fn a_password_is_asked_for() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let database = cluster.create_database()?;
    let other = cluster.create_database()?;
    let url = database.url_at(cluster.addr());
    for (password, says) in
        [(None, "no password supplied"), (Some(other.password()), "authentication failed")]
    {
        let mut psql = cluster.psql(&url);
        psql.args(["-c", "SELECT 1"]).envs(password.map(|password| ("PGPASSWORD", password)));
        let output = psql.output()?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(!output.status.success() && said.contains(says), "{said}");
    }
    ensure!(!format!("{database:?} {cluster:?}").contains(database.password()));
    Ok(())
}

#[test]
fn a_statement_that_fails_is_an_error_and_ends_the_rest() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let failed = cluster.sql("postgres", "SELECT 1 / 0; CREATE DATABASE never;").err().context("no error")?;
    ensure!(format!("{failed:#}").contains("division by zero"), "{failed:#}");
    ensure!(cluster.sql("postgres", "SELECT FROM pg_database WHERE datname = 'never'")?.is_empty());
    Ok(())
}

#[test]
fn a_server_that_cannot_start_says_why() -> anyhow::Result<()> {
    let error = Cluster::start_with(&[("max_connections", "many")]).err().context("it started")?;
    ensure!(format!("{error:#}").contains("invalid value for parameter \"max_connections\""), "{error:#}");
    Ok(())
}

#[test]
fn a_database_is_reached_with_tls_and_without() -> anyhow::Result<()> {
    let cluster = Cluster::start_with(&[("max_connections", "30")])?;
    let database = cluster.create_database()?;
    let ssl = "SELECT ssl, current_user, current_database() FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    for (url, encrypted) in [(database.url_at(cluster.addr()), "f"), (database.tls_url(&cluster), "t")] {
        let row = run(&cluster, &database, &url, ssl)?;
        ensure!(row == format!("{encrypted}|{}|{}", database.user, database.name), "{row}");
    }
    let settings = "SELECT current_setting('max_connections'), current_setting('fsync'),
        current_setting('synchronous_commit'), current_setting('server_encoding'),
        (SELECT datcollate FROM pg_database WHERE datname = current_database())";
    ensure!(cluster.sql(&database.name, settings)? == "30|on|on|UTF8|C");
    Ok(())
}

#[test]
fn what_was_committed_is_there_after_a_kill_and_after_a_stop() -> anyhow::Result<()> {
    // The thread that starts it may end.
    let started = thread::spawn(Cluster::start).join();
    let mut cluster = started.map_err(|_| anyhow::anyhow!("it panicked"))??;
    let database = cluster.create_database()?;
    let url = database.url_at(cluster.addr());
    run(&cluster, &database, &url, "CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)")?;
    cluster.kill()?;
    let refused = run(&cluster, &database, &url, "SELECT 1").err().context("it is still there")?;
    ensure!(format!("{refused:#}").contains("Connection refused"), "{refused:#}");
    cluster.start_again()?;
    ensure!(run(&cluster, &database, &url, "INSERT INTO kept VALUES (2) RETURNING n")? == "2");
    cluster.stop()?;
    cluster.start_again()?;
    ensure!(run(&cluster, &database, &url, "SELECT n FROM kept ORDER BY n")? == "1\n2");
    Ok(())
}

#[test]
fn a_server_that_does_not_answer_lets_callers_wait_and_goes_on_later() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    let database = cluster.create_database()?;
    let url = database.url_at(cluster.addr());
    let mut connected = cluster.psql(&url);
    connected.env("PGPASSWORD", database.password()).args(["-c", "SELECT pg_sleep(0.5)"]);
    let mut connected = connected.spawn()?;
    cluster.stop_answering()?;
    let began = Instant::now();
    let mut psql = cluster.psql(&url);
    psql.env("PGPASSWORD", database.password()).env("PGCONNECT_TIMEOUT", "2").args(["-c", "SELECT 1"]);
    let output = psql.output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && said.contains("timeout expired"), "{said}");
    ensure!(began.elapsed().as_secs() >= 1, "{:?}", began.elapsed());
    ensure!(connected.try_wait()?.is_none(), "somebody was answered");
    cluster.answer_again()?;
    ensure!(connected.wait()?.success());
    ensure!(run(&cluster, &database, &url, "SELECT 1")? == "1");
    // A stopped server can be killed, and shut down.
    cluster.stop_answering()?;
    cluster.kill()?;
    cluster.start_again()?;
    cluster.stop_answering()?;
    cluster.stop()
}

#[test]
fn a_dropped_cluster_leaves_nothing_behind() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let home = cluster.ca_file().parent().context("a directory")?.to_owned();
    let pid_file = fs::read_to_string(home.join("data/postmaster.pid"))?;
    let pid = pid_file.lines().next().context("a process")?;
    let segment =
        pid_file.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)).context("a segment")?;
    let there = || -> anyhow::Result<_> {
        let segments = fs::read_to_string("/proc/sysvipc/shm")?;
        let segment = segments.lines().any(|line| line.split_whitespace().nth(1) == Some(segment));
        Ok([segment, fs::exists(format!("/proc/{pid}"))?, home.exists()])
    };
    ensure!(there()? == [true; 3]);
    drop(cluster);
    ensure!(there()? == [false; 3], "{:?}", there()?);
    Ok(())
}

fn run(cluster: &Cluster, database: &Database, url: &str, text: &str) -> anyhow::Result<String> {
    let output = cluster.psql(url).env("PGPASSWORD", database.password()).args(["-c", text]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}
