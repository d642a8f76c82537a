//! The log on a disk that fails: nothing is acknowledged that is not there, and nothing after an error.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, mpsc},
    task::Poll,
};

use futures::{executor::block_on, poll};
use kms_core::{
    Action, AuditLog, Caller, Gate,
    audit::{Event, Refused},
    caller::{KeyScope, Role},
    time::Timestamp,
};

use crate::{FileLog, Options, ledger::Ledger};

/// A disk whose cache and platter are told apart, and whose every call can be made to fail.
#[derive(Default)]
struct Disk {
    cache: Vec<u8>,
    durable: Vec<u8>,
    syncs: usize,
    write_fails_after: Option<usize>,
    sync_fails: bool,
    sync_panics: bool,
    sync_blocks: bool,
    free_bytes: u64,
}

#[derive(Clone, Default)]
struct Faulty(Arc<(Mutex<Disk>, Condvar)>);

impl Faulty {
    fn with<T>(&self, change: impl FnOnce(&mut Disk) -> T) -> T {
        let result = change(&mut self.0.0.lock().expect("no test panics here"));
        self.0.1.notify_all();
        result
    }

    fn wait(&self, until: impl Fn(&Disk) -> bool) {
        let disk = self.0.0.lock().expect("no test panics here");
        drop(self.0.1.wait_while(disk, |disk| !until(disk)).expect("no test panics here"));
    }

    fn log(&self, options: &Options) -> FileLog {
        FileLog::start(self.clone(), 0, 1, options, None).expect("a thread can be made")
    }
}

impl Ledger for Faulty {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(|disk| {
            assert_eq!(disk.cache.len() as u64, offset, "the log appends and leaves no hole");
            if let Some(len) = disk.write_fails_after {
                disk.cache.extend_from_slice(&bytes[..len]);
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.cache.extend_from_slice(bytes);
            Ok(())
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.wait(|disk| !disk.sync_blocks);
        let panics = self.with(|disk| disk.sync_panics);
        assert!(!panics, "a defect in the writer");
        self.with(|disk| {
            if disk.sync_fails {
                return Err(io::Error::from_raw_os_error(5));
            }
            disk.syncs += 1;
            disk.durable = disk.cache.clone();
            Ok(())
        })
    }

    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.with(|disk| {
            disk.cache.truncate(usize::try_from(len).expect("tests are small"));
            Ok(())
        })
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.with(|disk| disk.free_bytes))
    }
}

#[test]
fn a_write_cut_short_by_a_full_disk_is_not_acknowledged_and_is_taken_back() {
    let disk = Faulty::default();
    let log = disk.log(&small(8));
    block_on(log.record(records(&log, 1))).expect("the first is kept");
    let good = disk.with(|disk| disk.durable.clone());

    disk.with(|disk| disk.write_fails_after = Some(10));
    let refused = block_on(log.record(records(&log, 2))).expect_err("the disk is full");
    assert!(refused.to_string().contains("a write failed"), "{refused}");
    log.flush_and_close();
    assert_eq!(disk.with(|disk| disk.cache.clone()), good, "no torn line stays");
}

#[test]
fn after_a_failed_sync_nothing_is_taken_even_when_the_disk_is_well_again() {
    let disk = Faulty::default();
    let log = disk.log(&small(8));
    let slot_before = log.reserve().expect("all is well");
    disk.with(|disk| disk.sync_fails = true);
    let refused = block_on(log.record(records(&log, 1))).expect_err("the sync failed");
    assert!(refused.to_string().contains("a sync failed"), "{refused}");

    disk.with(|disk| disk.sync_fails = false);
    let later = block_on(log.record(vec![(slot_before, event())])).expect_err("a place is no promise now");
    assert_eq!(later, refused);
    assert_eq!(log.reserve().err(), Some(refused.clone()));
    assert_eq!(log.health().refusal, Some(refused.0));
    assert!(disk.with(|disk| disk.durable.is_empty()));
}

#[test]
fn a_record_waits_for_its_sync_and_those_that_come_meanwhile_share_the_next() {
    let disk = Faulty::default();
    let log = disk.log(&small(100));
    disk.with(|disk| disk.sync_blocks = true);
    let mut first = Box::pin(log.record(records(&log, 1)));
    disk.wait(|disk| !disk.cache.is_empty());
    assert_eq!(block_on(async { poll!(&mut first) }), Poll::Pending, "written is not durable");

    let others: Vec<_> = (0..50).map(|_| log.record(records(&log, 1))).collect();
    let _unused = log.reserve().expect("a place");
    assert_eq!(log.health().records_waiting, 51, "a place alone is no record");
    disk.with(|disk| disk.sync_blocks = false);
    block_on(first).expect("durable now");
    block_on(futures::future::try_join_all(others)).expect("durable now");
    assert_eq!(disk.with(|disk| disk.syncs), 2);
    assert_eq!((log.health().records_written, log.health().records_waiting), (51, 0));
}

#[test]
fn a_record_whose_caller_went_away_is_kept() {
    let disk = Faulty::default();
    let log = disk.log(&small(8));
    drop(log.record(records(&log, 1)));
    log.record_later(log.reserve().expect("a place"), event());
    log.flush_and_close();
    assert_eq!(lines(&disk.with(|disk| disk.durable.clone())), 2);
    assert!(log.reserve().is_err(), "it is closed");
}

#[test]
fn when_all_places_are_taken_the_next_is_refused_until_one_is_given_back() {
    let disk = Faulty::default();
    let log = disk.log(&small(2));
    let (one, _two) = (log.reserve().expect("one"), log.reserve().expect("two"));
    let refused = log.reserve().err().expect("there are two");
    assert!(refused.to_string().contains("all 2 places are taken"), "{refused}");
    drop(one);
    block_on(log.record(records(&log, 1))).expect("a place is free");
    block_on(log.record(records(&log, 1))).expect("a recorded operation gives its place back");
    assert_eq!(log.health().slots_taken, 1);
}

#[test]
fn a_nearly_full_disk_takes_no_new_operation_but_finishes_those_under_way() {
    let disk = Faulty::default();
    disk.with(|disk| disk.free_bytes = 1_000);
    let log = disk.log(&Options { free_bytes_min: 1_000, ..small(8) });
    let slot = log.reserve().expect("just enough");
    disk.with(|disk| disk.free_bytes = 999);
    let refused = until(|| log.reserve().err());
    assert!(refused.to_string().contains("999 bytes free"), "{refused}");
    block_on(log.record(vec![(slot, event())])).expect("its place was promised");
    disk.with(|disk| disk.free_bytes = 1_000);
    until(|| log.reserve().ok());
}

#[test]
fn a_defect_of_the_writer_refuses_everybody_and_leaves_nobody_waiting() {
    let disk = Faulty::default();
    let log = disk.log(&small(8));
    let slot = log.reserve().expect("all is well");
    disk.with(|disk| disk.sync_panics = true);
    let refused = block_on(log.record(records(&log, 1))).expect_err("the writer panicked");
    assert_eq!(refused, Refused("its writer has stopped".to_owned()));
    until(|| log.reserve().err());
    log.record_later(slot, event());
    assert_eq!((log.health().records_lost, log.health().records_waiting), (1, 0));
}

fn small(slots_max: usize) -> Options {
    Options { slots_max, free_bytes_min: 0, ..Options::new("/nonexistent") }
}

fn records(log: &FileLog, count: usize) -> Vec<(crate::Slot, Event)> {
    (0..count).map(|_| (log.reserve().expect("there are places"), event())).collect()
}

fn lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

/// Asks again until there is an answer; the writer looks at the disk once a second.
fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let (_never, pause) = mpsc::channel::<()>();
    loop {
        match ask() {
            Some(answer) => return answer,
            None => drop(pause.recv_timeout(std::time::Duration::from_millis(5))),
        }
    }
}

/// An event as the gate makes it: nobody else can.
fn event() -> Event {
    struct Catch(Mutex<Option<Event>>);

    impl AuditLog for Catch {
        type Slot = ();

        fn reserve(&self) -> Result<(), Refused> {
            Ok(())
        }

        async fn record(&self, _: Vec<((), Event)>) -> Result<(), Refused> {
            Ok(())
        }

        fn record_later(&self, (): (), event: Event) {
            *self.0.lock().expect("one thread") = Some(event);
        }
    }

    let log = Arc::new(Catch(Mutex::default()));
    let caller = Caller::new("access-token:test", Role::Administrator, KeyScope::All);
    let gate = Gate::new(Arc::clone(&log), 7);
    drop(block_on(gate.admit(&caller, Action::ListKeys, None, Timestamp::UNIX_EPOCH)).expect("allowed"));
    log.0.lock().expect("one thread").take().expect("an abandoned admission is recorded")
}
