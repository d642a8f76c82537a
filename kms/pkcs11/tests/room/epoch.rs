//! The epoch's marks as data objects of a real token: among objects of others, through several workers, and as stock
//! tools see them.

use std::{fs, process::Command};

use futures::future::join_all;
use kms_core::{
    Hsm,
    epoch::{Installation, Mark, Step},
    hsm::Fault,
};

use crate::support::{Rig, grant, random, soon};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_put_under_our_label_is_left_alone() {
    let rig = Rig::with(|config| config.workers = 1).await;
    for (application, value) in
        [("kms", vec![]), ("kms", b"not a mark".to_vec()), ("kms", vec![1; 100_000]), ("other", vec![2; 25])]
    {
        put(&rig, application, &value);
    }
    // Whoever lacks the PIN can make public objects, such as one of a later release, which would be an error.
    put_public(&rig, &[2; 25]);
    let mark = Mark { installation: Installation(random()), value: 7, nonce: [1; 8] };
    for (step, expected) in [
        (Step::Read, vec![]),
        (Step::Create(mark), vec![mark]),
        (Step::Destroy(Mark { value: 6, ..mark }), vec![mark]),
        (Step::Destroy(mark), vec![]),
    ] {
        assert_eq!(rig.pool.epoch(&grant(), step, soon()).await.unwrap(), expected, "{step:?}");
    }
    assert_eq!(list(&rig).matches("kms-epoch").count(), 5, "{}", list(&rig));
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_of_a_later_release_is_an_error_that_says_so() {
    let rig = Rig::with(|config| config.workers = 1).await;
    put(&rig, "kms", &[2; 25]);
    let read = rig.pool.epoch(&grant(), Step::Read, soon()).await;
    assert!(matches!(&read, Err(Fault::Failed(why)) if why.contains("upgrade")), "{read:?}");
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_make_the_same_mark_make_one_that_nobody_may_change() {
    let rig = Rig::new().await;
    let mark = Mark { installation: Installation(random()), value: 1, nonce: [1; 8] };
    let grant = grant();
    let all = (0..16).map(|_| rig.pool.epoch(&grant, Step::Create(mark), soon()));
    for marks in join_all(all).await {
        assert_eq!(marks.unwrap(), [mark]);
    }
    let text = list(&rig);
    assert_eq!(text.matches("kms-epoch").count(), 1, "{text}");
    assert!(text.contains("private") && !text.contains("modifiable"), "{text}");
    rig.close().await;
}

fn put(rig: &Rig, application: &str, value: &[u8]) {
    put_with(rig, application, value, &["--private"]);
}

fn put_public(rig: &Rig, value: &[u8]) {
    put_with(rig, "kms", value, &[]);
}

fn put_with(rig: &Rig, application: &str, value: &[u8], more: &[&str]) {
    let file = rig.dir.path().join("value");
    fs::write(&file, value).unwrap();
    let file = file.display().to_string();
    let object = ["--type", "data", "--label", "kms-epoch", "--application-label", application];
    pkcs11_tool(rig, &[&["--write-object", &file][..], &object, more].concat());
}

fn list(rig: &Rig) -> String {
    pkcs11_tool(rig, &["--list-objects", "--type", "data"])
}

fn pkcs11_tool(rig: &Rig, arguments: &[&str]) -> String {
    let (name, conf) = rig.token.env();
    let output = Command::new("pkcs11-tool")
        .env(name, conf)
        .arg("--module")
        .arg(rig.token.module())
        .args(["--token-label", rig.token.label(), "--login", "--pin"])
        .arg(fs::read_to_string(rig.token.pin_file()).unwrap().trim_end())
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
