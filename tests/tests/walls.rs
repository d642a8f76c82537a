//! The walls between the rooms (docs/ARCHITECTURE.md), read off cargo's own account of who depends on what.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Command,
};

use anyhow::ensure;
use serde_json::Value;

/// Who may know whom among our own crates. A crate that is not listed may know none.
const ARROWS: &[(&str, &[&str])] = &[
    ("kms-core", &["kms-envelope"]),
    ("kms-pkcs11", &["kms-core", "kms-envelope"]),
    ("kms-store", &["kms-core"]),
    ("kms-audit", &["kms-core"]),
    ("kms-api-jwks", &["kms-core"]),
    ("kms-api-grpc", &["kms-core", "kms-envelope", "kms-proto"]),
    ("kms-client", &["kms-envelope", "kms-proto"]),
    (
        "kms-server",
        &["kms-core", "kms-pkcs11", "kms-store", "kms-audit", "kms-api-jwks", "kms-api-grpc", "kms-proto"],
    ),
    (
        "kms-cli",
        &["kms-client", "kms-proto", "kms-server", "kms-core", "kms-store", "kms-pkcs11", "kms-softhsm"],
    ),
    ("kms-examples", &["kms-client"]),
    ("kms-tests", &["kms-client", "kms-envelope", "kms-proto", "kms-softhsm", "kms-test-postgres"]),
    ("kms-bench", &["kms-client", "kms-envelope", "kms-proto", "kms-softhsm", "kms-tests"]),
];

/// Throw-away tokens and databases may stand in for real ones in any crate's tests.
const ALSO_IN_TESTS: &[&str] = &["kms-softhsm", "kms-test-postgres"];

/// Who alone may name a crate from outside. The benchmark measures the bare token beside the service; the fault shim is
/// a module, and its tests call it as a program would; examples show how others use what they have.
const ONLY: &[(&str, &[&str])] = &[
    ("cryptoki", &["kms-bench", "kms-faulty-pkcs11", "kms-pkcs11"]),
    ("cryptoki-sys", &["kms-faulty-pkcs11"]),
    ("libloading", &["kms-faulty-pkcs11"]),
    ("sqlx", &["kms-examples", "kms-store"]),
];

/// The one crate with unsafe code. It knows nobody, and nobody may know it: it is built by its name.
const UNSAFE: &str = "kms-faulty-pkcs11";

/// What must not be anywhere below core: it says what the system means, and not with which technology.
const NOT_IN_CORE: &[&str] = &["tokio", "tonic", "prost", "axum", "hyper", "sqlx", "cryptoki"];

/// What must not be anywhere: a second cryptographic backend.
const NOWHERE: &[&str] = &["openssl", "openssl-sys", "ring"];

#[test]
fn no_crate_knows_another_that_it_should_not() -> anyhow::Result<()> {
    let arrows: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in ours()? {
        let may = arrows.get(package.name.as_str()).copied().unwrap_or_default();
        for dependency in package.dependencies.iter().filter(|d| d.name.starts_with("kms-")) {
            let in_tests = dependency.kind == "dev" && ALSO_IN_TESTS.contains(&dependency.name.as_str());
            // A crate's own tests may want it with more features.
            let itself = dependency.kind == "dev" && dependency.name == package.name;
            if !may.contains(&dependency.name.as_str()) && !in_tests && !itself {
                wrong.push(format!("{} knows {}", package.name, dependency.name));
            }
        }
    }
    ensure!(wrong.is_empty(), "walls are broken: {wrong:#?}");
    Ok(())
}

#[test]
fn only_its_own_room_names_the_pkcs11_and_the_sql_library() -> anyhow::Result<()> {
    for (library, rooms) in ONLY {
        let mut naming: Vec<_> = ours()?
            .into_iter()
            .filter(|package| package.dependencies.iter().any(|d| d.name == *library))
            .map(|package| package.name)
            .collect();
        naming.sort();
        ensure!(naming == *rooms, "{library} is named by {naming:?}; it belongs to {rooms:?} alone");
    }
    Ok(())
}

#[test]
fn nothing_below_core_does_input_or_output() -> anyhow::Result<()> {
    let below = below("kms-core")?;
    let wrong: Vec<_> = NOT_IN_CORE.iter().filter(|name| below.contains(**name)).collect();
    ensure!(wrong.is_empty(), "kms-core stands on {wrong:?}");
    Ok(())
}

#[test]
fn there_is_one_cryptographic_backend() -> anyhow::Result<()> {
    let below = below("kms-cli")?;
    let wrong: Vec<_> = NOWHERE.iter().filter(|name| below.contains(**name)).collect();
    ensure!(wrong.is_empty(), "the binary stands on {wrong:?}");
    Ok(())
}

#[test]
fn the_fakes_and_failpoints_of_core_are_for_tests_only() -> anyhow::Result<()> {
    for package in ours()? {
        for dependency in package.dependencies.iter().filter(|d| d.kind != "dev") {
            let tests_only = dependency
                .features
                .iter()
                .find(|feature| ["conformance", "failpoints"].contains(&feature.as_str()));
            ensure!(
                tests_only.is_none(),
                "{} ships with {tests_only:?} of {}",
                package.name,
                dependency.name
            );
        }
    }
    Ok(())
}

#[test]
fn only_the_fault_shim_may_have_unsafe_code_and_nobody_depends_on_it() -> anyhow::Result<()> {
    for package in ours()? {
        let manifest = std::fs::read_to_string(&package.manifest)?;
        let inherits = manifest.contains("[lints]\nworkspace = true");
        ensure!(inherits == (package.name != UNSAFE), "{} has lints of its own", package.name);
        let knows = package.dependencies.iter().any(|dependency| dependency.name == UNSAFE);
        ensure!(!knows, "{} depends on {UNSAFE}", package.name);
    }
    Ok(())
}

struct Package {
    name: String,
    manifest: PathBuf,
    dependencies: Vec<Dependency>,
}

struct Dependency {
    name: String,
    /// `normal`, `build` or `dev`.
    kind: String,
    features: Vec<String>,
}

/// The crates of the workspace with what their manifests name.
fn ours() -> anyhow::Result<Vec<Package>> {
    let metadata = cargo(&["metadata", "--format-version=1", "--no-deps"])?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let text = |value: &Value| value.as_str().unwrap_or("normal").to_owned();
    let dependency = |value: &Value| Dependency {
        name: text(&value["name"]),
        kind: text(&value["kind"]),
        features: list(&value["features"]).map(text).collect(),
    };
    let packages: Vec<_> = list(&metadata["packages"])
        .map(|package| Package {
            name: text(&package["name"]),
            manifest: text(&package["manifest_path"]).into(),
            dependencies: list(&package["dependencies"]).map(dependency).collect(),
        })
        .collect();
    ensure!(packages.len() > 9, "cargo shows only {} packages", packages.len());
    Ok(packages)
}

/// Names of all crates that are compiled into `root`, tests and build scripts apart.
fn below(root: &str) -> anyhow::Result<BTreeSet<String>> {
    let tree = cargo(&["tree", "--package", root, "--edges", "normal", "--prefix", "none"])?;
    let names: BTreeSet<_> =
        tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    ensure!(names.len() > 10, "cargo shows only {names:?} below {root}");
    Ok(names)
}

fn cargo(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--locked", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    ensure!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
