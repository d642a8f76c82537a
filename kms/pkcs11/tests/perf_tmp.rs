#![allow(warnings)]
#[path = "room/support.rs"]
mod support;
use kms_core::*;
use kms_core::algorithm::Modulus;
use support::*;
use std::time::*;
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn perf() {
    for workers in [1u16, 2] {
    for alg in [Algorithm::Es256, Algorithm::Rs256(Modulus::Bits2048)] {
        let rig = Rig::with(|c| c.workers = workers).await;
        let (key, _) = rig.key(alg).await;
        let input = signature::input_of(alg, b"m");
        for inflight in [1usize, 4, 16, 64] {
            let end = Instant::now() + Duration::from_millis(1500);
            let began = Instant::now();
            let cpu0 = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
            let tasks: Vec<_> = (0..inflight).map(|_| {
                let (pool, key, input) = (rig.pool.clone(), key.clone(), input.clone());
                tokio::spawn(async move {
                    let mut n = 0u64;
                    let g = grant();
                    while Instant::now() < end {
                        pool.sign(&g, &key, alg, input.clone(), soon()).await.unwrap();
                        n += 1;
                    }
                    n
                })
            }).collect();
            let mut n = 0;
            for t in tasks { n += t.await.unwrap(); }
            let cpu1 = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
            let cpu = (cpu1.tv_sec - cpu0.tv_sec) as f64 + (cpu1.tv_nsec - cpu0.tv_nsec) as f64 / 1e9;
            let s = began.elapsed().as_secs_f64();
            println!("{alg} workers={workers} inflight={inflight}: {:.0}/s, {:.1} us/call wall, front cpu {:.2} us/call", n as f64 / s, s * 1e6 / n as f64 * inflight as f64, cpu * 1e6 / n as f64);
        }
        rig.close().await;
    }}
}
#[test]
fn araw() {
    let token = kms_softhsm::EphemeralToken::new().unwrap();
    let (v, c) = token.env();
    let o = std::process::Command::new(std::env::current_exe().unwrap()).args(["--exact","raw_inner","--ignored","--nocapture"]).env(v,c).env("MOD", token.module()).env("PIN", std::fs::read_to_string(token.pin_file()).unwrap()).output().unwrap();
    println!("{}", String::from_utf8_lossy(&o.stdout));
}
#[test]
#[ignore]
fn raw_inner() {
    use cryptoki::{context::*, mechanism::*, object::*, session::*};
    let p = Pkcs11::new(std::env::var("MOD").unwrap()).unwrap();
    p.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    let slot = p.get_slots_with_initialized_token().unwrap()[0];
    let s = p.open_rw_session(slot).unwrap();
    let pin = std::env::var("PIN").unwrap();
    s.login(UserType::User, Some(&cryptoki::types::AuthPin::from(pin.trim().to_string()))).unwrap();
    for rsa in [false, true] {
        let (_, k) = if rsa {
            s.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &[Attribute::Token(true), Attribute::ModulusBits(2048.into()), Attribute::PublicExponent(vec![1,0,1])], &[Attribute::Token(true), Attribute::Sign(true)]).unwrap()
        } else {
            s.generate_key_pair(&Mechanism::EccKeyPairGen, &[Attribute::Token(true), Attribute::EcParams(vec![0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07])], &[Attribute::Token(true), Attribute::Sign(true)]).unwrap()
        };
        let m = if rsa { Mechanism::RsaPkcs } else { Mechanism::Ecdsa };
        let began = Instant::now();
        let mut n = 0;
        while began.elapsed() < Duration::from_secs(2) { s.sign(&m, k, &[7; 32]).unwrap(); n += 1; }
        println!("raw rsa={rsa}: {:.0}/s", n as f64 / began.elapsed().as_secs_f64());
    }
}
