//! A worker and nothing else: what tests and benchmarks start where `kms serve` starts `kms hsm-worker`.

fn main() -> std::process::ExitCode {
    kms_pkcs11::worker::main()
}
