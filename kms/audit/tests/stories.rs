//! What the log promises, on a real file system: through restarts, crashes, two writers and a full disk.
#![expect(clippy::expect_used, reason = "a test's own steps must succeed")]

use std::{
    collections::HashSet,
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use futures::executor::block_on;
use kms_audit::{FileLog, OpenError, Options};
use kms_core::{
    Action, AuditLog as _, Caller, Error, Gate, Unsettled,
    caller::{KeyScope, Role},
    time::Timestamp,
};
use serde_json::Value;
use tempfile::TempDir;

/// Where a test that runs as a child keeps its log.
const CHILD_DIR: &str = "KMS_AUDIT_TEST_DIR";

#[test]
fn a_second_writer_is_refused_and_told_why() {
    let dir = Dir::new();
    let first = dir.open();
    let Err(refused) = FileLog::open(&dir.options()) else { panic!("two writers on one log") };
    assert!(matches!(refused, OpenError::InUse(_)));
    assert!(refused.to_string().contains("in use by another process"), "{refused}");
    drop(first);
    drop(dir.open());
}

#[test]
fn a_log_of_a_later_format_is_refused_and_not_touched() {
    for (text, place) in [
        ("{\"format\":\"kms-audit\",\"version\":2,\"new\":true}\n", "header"),
        ("{\"format\":\"kms-audit\",\"version\":1}\n{\"v\":2,\"seq\":1}\n", "record"),
    ] {
        let dir = Dir::new();
        fs::write(dir.file(), text).expect("ours");
        let Err(OpenError::Newer { version: 2, .. }) = FileLog::open(&dir.options()) else {
            panic!("{place}")
        };
        assert_eq!(dir.text(), text);
    }
}

#[test]
fn a_log_that_somebody_edited_is_refused_and_not_touched() {
    let damages: [fn(&str) -> String; 4] = [
        |text| text.replace("\"seq\":2,", "\"seq\":20,"),
        |text| text.replace("\"v\":1,\"seq\":2,", "\"v\":one,\"seq\":2,"),
        |text| text.replacen("kms-audit", "kms-other", 1),
        |text| {
            text.lines().enumerate().filter(|(n, _)| *n != 2).map(|(_, line)| format!("{line}\n")).collect()
        },
    ];
    for damage in damages {
        let dir = Dir::new();
        record(dir.open(), ["a", "b", "c"]);
        let text = damage(&dir.text());
        fs::write(dir.file(), &text).expect("ours");
        let Err(OpenError::Damaged { .. }) = FileLog::open(&dir.options()) else { panic!("{text}") };
        assert_eq!(dir.text(), text);
    }
}

#[test]
fn a_tail_that_a_crash_tore_is_moved_aside_and_the_numbers_go_on() {
    let whole = "{\"v\":1,\"seq\":3,\"caller\":\"never acknowledged\"}";
    for tail in
        [&whole[..20], whole, "{\"v\":1,\0\0\0\0\"x\"}\n{\"v\":1,\"seq\":4,\"group\":3}\n", "\0\0\0\0"]
    {
        let dir = Dir::new();
        record(dir.open(), ["a", "b"]);
        let good = dir.text();
        fs::write(dir.file(), format!("{good}{tail}")).expect("ours");

        record(dir.open(), ["c"]);
        assert_eq!(dir.callers(), ["a", "b", "c"]);
        let aside = dir.0.path().join(format!("audit-000001.jsonl.torn-{}", good.len()));
        assert_eq!(fs::read_to_string(&aside).expect("it is kept"), tail);
        assert_eq!(mode(&aside), 0o600);
    }
}

#[test]
fn a_page_lost_in_the_middle_of_a_group_takes_the_rest_of_that_group_with_it() {
    let dir = Dir::new();
    record(dir.open(), ["a", "b"]);
    let kept = dir.text() + "{\"v\":1,\"seq\":3,\"group\":3,\"caller\":\"c\"}\n";
    let torn = "{\"v\":1,\"seq\":4,\0\0\0\0}\n{\"v\":1,\"seq\":5,\"group\":3}\n";
    fs::write(dir.file(), format!("{kept}{torn}")).expect("ours");
    record(dir.open(), ["d"]);
    assert_eq!(dir.callers(), ["a", "b", "c", "d"]);
    let aside = dir.0.path().join(format!("audit-000001.jsonl.torn-{}", kept.len()));
    assert_eq!(fs::read_to_string(&aside).expect("it is kept"), torn);
}

#[test]
fn a_page_lost_before_records_that_were_acknowledged_is_damage_and_nothing_is_touched() {
    let dir = Dir::new();
    let gate = Gate::new(Arc::new(dir.open()), 1);
    let name = "x".repeat(1_000);
    // Each round waits for the one before, so it is of a later group.
    for _ in 0..5 {
        let round = (0..1_000).map(|_| operation(&gate, &name));
        block_on(futures::future::join_all(round)).into_iter().for_each(|result| result.expect("recorded"));
    }
    drop(gate);
    let whole = fs::read(dir.file()).expect("there");
    for (before_end, zeros) in [(3 << 20, 4_096), (1 << 20, 1)] {
        let mut damaged = whole.clone();
        let page = damaged.len() - before_end;
        damaged[page..page + zeros].fill(0);
        fs::write(dir.file(), &damaged).expect("ours");
        let Err(OpenError::Damaged { .. }) = FileLog::open(&dir.options()) else { panic!("{before_end}") };
        assert!(fs::read(dir.file()).expect("there") == damaged, "it was touched");
        assert_eq!(fs::read_dir(dir.0.path()).expect("there").count(), 1, "nothing was moved aside");
    }
}

#[test]
fn a_crash_while_the_log_began_is_made_good() {
    for torn in ["", "{\"format\":\"kms-au"] {
        let dir = Dir::new();
        fs::write(dir.file(), torn).expect("ours");
        record(dir.open(), ["a"]);
        assert_eq!(dir.callers(), ["a"]);
    }
}

#[test]
fn sequence_numbers_go_on_over_restarts_also_in_a_file_longer_than_what_is_read_back() {
    let dir = Dir::new();
    record(dir.open(), ["first"]);
    // 6 MiB of records as an earlier run left them.
    let mut file = fs::OpenOptions::new().append(true).open(dir.file()).expect("there");
    let filler = "x".repeat(1_000);
    let earlier: String =
        (2..=6_000).map(|seq| format!("{{\"v\":1,\"seq\":{seq},\"caller\":\"{filler}\"}}\n")).collect();
    file.write_all(earlier.as_bytes()).expect("there is room");

    record(dir.open(), ["last"]);
    let callers = dir.callers();
    assert_eq!((callers.len(), callers[6_000].as_str()), (6_001, "last"));
}

#[test]
fn the_files_are_private() {
    let dir = Dir::new();
    let inner = Options::new(dir.0.path().join("new/audit"));
    drop(FileLog::open(&inner).expect("it is made"));
    assert_eq!(mode(&inner.dir), 0o700);
    assert_eq!(mode(&inner.dir.join("audit-000001.jsonl")), 0o600);
}

#[test]
fn a_record_tells_what_was_asked_and_how_it_ended() {
    let dir = Dir::new();
    let gate = Gate::new(Arc::new(dir.open()), 0xABCD);
    let (admin, user) = (caller("admin", Role::Administrator), caller("user", Role::User));
    let key = "signer".parse().expect("a key name");
    block_on(async {
        let mut sign =
            gate.admit(&admin, Action::Sign, Some(&key), Timestamp::UNIX_EPOCH).await.expect("allowed");
        sign.uses_version(3);
        sign.settle(Ok(Unsettled::new(()))).await.expect("recorded");
        gate.admit(&user, Action::CreateKey, None, Timestamp::UNIX_EPOCH).await.err().expect("denied");
        drop(gate.admit(&admin, Action::ListKeys, None, Timestamp::UNIX_EPOCH).await.expect("allowed"));
    });
    drop(gate);
    let text = dir.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[1],
        "{\"v\":1,\"seq\":1,\"group\":1,\"at\":\"1970-01-01T00:00:00Z\",\"operation\":\"000000000000abcd0000000000000000\",\
         \"phase\":\"outcome\",\"caller\":\"admin\",\"action\":\"sign\",\"key\":\"signer\",\"version\":3,\
         \"outcome\":\"succeeded\"}",
    );
    assert!(lines[2].contains("\"outcome\":\"denied\",\"reason\":\"NO_RULE\""), "{}", lines[2]);
    assert!(lines[3].contains("\"outcome\":\"abandoned\""), "{}", lines[3]);
}

#[test]
fn a_caller_with_newlines_in_its_name_still_makes_one_line() {
    let dir = Dir::new();
    record(dir.open(), ["evil\n{\"v\":1,\"seq\":99}\n\0"]);
    record(dir.open(), ["next"]);
    assert_eq!(dir.callers(), ["evil\n{\"v\":1,\"seq\":99}\n\0", "next"]);
}

#[test]
fn an_event_that_is_too_long_is_refused_and_does_no_harm() {
    let dir = Dir::new();
    let log = Arc::new(dir.open());
    let gate = Gate::new(Arc::clone(&log), 1);
    let result: Result<(), Error> = block_on(operation(&gate, &"x".repeat(20_000)));
    assert_eq!(result.expect_err("nothing is released").reason(), "AUDIT_UNAVAILABLE");
    block_on(operation(&gate, "next")).expect("the log is well");
    assert_eq!(log.health().slots_taken, 0);
}

#[test]
fn ten_thousand_records_of_many_threads_are_all_there_one_line_each_under_few_syncs() {
    let dir = Dir::new();
    let log = Arc::new(dir.open());
    let gate = Gate::new(Arc::clone(&log), 1);
    std::thread::scope(|scope| {
        for thread in 0..10 {
            let gate = &gate;
            scope.spawn(move || {
                let operations =
                    (0..1_000).map(|n| async move { operation(gate, &format!("{thread}-{n}")).await });
                for result in block_on(futures::future::join_all(operations)) {
                    result.expect("recorded");
                }
            });
        }
    });
    // The log is still open: what was acknowledged is in the file now, not at some later flush.
    let callers = dir.callers();
    assert_eq!(callers.len(), 10_000);
    assert_eq!(callers.iter().collect::<HashSet<_>>().len(), 10_000);
    for thread in 0..10 {
        let prefix = format!("{thread}-");
        let order = callers
            .iter()
            .filter_map(|name| name.strip_prefix(&prefix))
            .map(|n| n.parse::<usize>().expect("a number"));
        assert!(order.eq(0..1_000), "the records of one thread are in the order of its calls");
    }
    let health = log.health();
    assert_eq!((health.records_written, health.slots_taken, health.refusal), (10_000, 0, None));
    // Each caller is a new one, whose rules are compiled first: records come less densely than in a service.
    assert!(health.syncs < 5_000, "{} syncs", health.syncs);
}

#[test]
fn closing_writes_what_is_queued_and_refuses_what_comes_after() {
    let dir = Dir::new();
    let log = Arc::new(dir.open());
    let gate = Gate::new(Arc::clone(&log), 1);
    let abandoned = block_on(gate.admit(
        &caller("a", Role::Administrator),
        Action::ListKeys,
        None,
        Timestamp::UNIX_EPOCH,
    ));
    drop(abandoned);
    log.flush_and_close();
    log.flush_and_close();
    assert_eq!(dir.callers(), ["a"]);
    let refused = log.reserve().err().expect("it is closed");
    assert!(refused.to_string().contains("it is closed"), "{refused}");
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let dir = Dir::new();
    let mut child =
        child(&dir, Command::new(env::current_exe().expect("this test"))).spawn().expect("it starts");
    let mut said = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let mut acknowledged: Vec<String> =
        said.by_ref().filter(|line| line.starts_with("done ")).take(3_000).collect();
    child.kill().expect("it runs");
    child.wait().expect("it ran");
    // The pipe still holds what it said before it died; its last words may lack their end.
    acknowledged.extend(said.filter(|line| line.starts_with("done ") && line.ends_with(" .")));

    record(dir.open(), ["after the crash"]);
    let callers: HashSet<String> = dir.callers().into_iter().collect();
    for line in &acknowledged {
        let name = line.trim_start_matches("done ").trim_end_matches(" .");
        assert!(callers.contains(name), "{name} was acknowledged and is lost");
    }
}

#[test]
fn a_file_that_the_system_lets_grow_no_more_acknowledges_nothing_that_is_not_there() {
    let dir = Dir::new();
    // A limit on the file's size, with its signal ignored, fails a write half-way, as a full disk does.
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""])
        .arg(env::current_exe().expect("this test"));
    let output = child(&dir, limited).output().expect("it runs");
    let said = String::from_utf8(output.stdout).expect("it speaks UTF-8");
    let acknowledged: HashSet<&str> =
        said.lines().filter_map(|line| line.strip_prefix("done ")?.strip_suffix(" .")).collect();
    assert!(said.contains("refused AUDIT_UNAVAILABLE"), "{said}");
    assert!(acknowledged.len() > 10, "{said}");

    let callers = dir.callers();
    assert!(dir.text().ends_with('\n'), "the torn line was taken back");
    assert_eq!(callers.iter().map(String::as_str).collect::<HashSet<_>>(), acknowledged);
    record(dir.open(), ["with more room"]);
    assert_eq!(dir.callers().len(), callers.len() + 1);
}

#[test]
#[ignore = "it is the child of the tests above"]
fn child_that_records_until_it_is_refused_or_killed() {
    let dir = PathBuf::from(env::var_os(CHILD_DIR).expect("its parent says where"));
    let gate = Gate::new(Arc::new(FileLog::open(&Options::new(dir)).expect("it opens")), 1);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let gate = &gate;
            scope.spawn(move || {
                for n in 0_u64.. {
                    let name = format!("{thread}-{n}");
                    let line = match block_on(operation(gate, &name)) {
                        Ok(()) => format!("done {name} .\n"),
                        Err(error) => format!("refused {}\n", error.reason()),
                    };
                    std::io::stdout().write_all(line.as_bytes()).expect("its parent listens");
                    if line.starts_with("refused") {
                        return;
                    }
                }
            });
        }
    });
}

fn child(dir: &Dir, mut command: Command) -> Command {
    command
        .args(["--exact", "child_that_records_until_it_is_refused_or_killed", "--ignored", "--nocapture"])
        .env(CHILD_DIR, dir.0.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// One operation from the gate's door to its release.
async fn operation(gate: &Gate<FileLog>, name: &str) -> Result<(), Error> {
    let caller = caller(name, Role::Administrator);
    let admission = gate.admit(&caller, Action::ListKeys, None, Timestamp::UNIX_EPOCH).await?;
    admission.settle(Ok(Unsettled::new(()))).await
}

/// Records one operation per name, then closes the log.
fn record<const N: usize>(log: FileLog, names: [&str; N]) {
    let gate = Gate::new(Arc::new(log), 1);
    names.into_iter().for_each(|name| block_on(operation(&gate, name)).expect("it is recorded"));
}

fn caller(name: &str, role: Role) -> Caller {
    Caller::new(name, role, KeyScope::All)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn options(&self) -> Options {
        Options { free_bytes_min: 0, ..Options::new(self.0.path()) }
    }

    fn open(&self) -> FileLog {
        FileLog::open(&self.options()).expect("it opens")
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("audit-000001.jsonl")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file()).expect("it is there, and UTF-8")
    }

    /// The callers of all records, in the order of the file; checks header and numbers on the way.
    fn callers(&self) -> Vec<String> {
        let text = self.text();
        let mut lines =
            text.lines().map(|line| serde_json::from_str::<Value>(line).expect("each line is JSON"));
        let header = lines.next().expect("a header");
        assert_eq!((&header["format"], &header["version"]), (&"kms-audit".into(), &1.into()));
        let callers = lines.zip(1_u64..).map(|(line, seq)| {
            assert_eq!(line["seq"], seq);
            line["caller"].as_str().expect("a name").to_owned()
        });
        callers.collect()
    }
}
