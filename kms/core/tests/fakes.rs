//! The fakes pass what the real implementations must pass.

use std::sync::Arc;

use futures::executor::block_on;
use kms_core::{
    Algorithm, conformance,
    fakes::{MemoryLog, MemoryStore, SoftHsm, soon},
};

#[test]
fn the_token_in_memory_conforms() {
    // 3072 and 4096 bits take long to generate and differ in nothing else.
    let quick = |alg: &Algorithm| !alg.to_string().ends_with("-3072") && !alg.to_string().ends_with("-4096");
    let algorithms: Vec<_> = Algorithm::ALL.into_iter().filter(quick).collect();
    block_on(conformance::hsm::run(&Arc::<SoftHsm>::default(), &algorithms, soon()));
}

#[test]
fn the_store_in_memory_conforms() {
    block_on(conformance::store::run(&Arc::<MemoryStore>::default()));
    let one = Arc::<MemoryStore>::default();
    let other = Arc::new(one.linked());
    one.interleave();
    block_on(conformance::store::run_shared(&one, &other));
}

#[test]
fn the_log_in_memory_conforms() {
    let log = MemoryLog::default();
    let acknowledged = block_on(conformance::audit::run(&log, 100));
    assert_eq!(log.events(), acknowledged);
}
