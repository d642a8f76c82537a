//! The server's certificate.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::programs::{Programs, text_of};

/// A certificate and its key.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) file: PathBuf,
    pub(crate) key_file: PathBuf,
}

impl Certificate {
    /// Makes one for 127.0.0.1 that signed itself and is its own trust anchor, in `dir`; the server may read the key.
    pub(crate) fn make(dir: &Path, programs: &Programs) -> anyhow::Result<Self> {
        let config = dir.join("openssl.cnf");
        // libpq before 15 compares an address with the common name, and that only when no DNS name is there.
        fs::write(
            &config,
            "[req]\ndistinguished_name = dn\nx509_extensions = ext\nprompt = no\n[dn]\nCN = 127.0.0.1\n\
             [ext]\nbasicConstraints = critical, CA:FALSE\nextendedKeyUsage = serverAuth\n\
             subjectAltName = IP:127.0.0.1\n",
        )?;
        let made = Self { file: dir.join("tls.crt"), key_file: dir.join("tls.key") };
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
        command.args(["-noenc", "-days", "2", "-config"]).arg(config);
        command.arg("-out").arg(&made.file).arg("-keyout").arg(&made.key_file);
        text_of(&mut command).context("is it installed? apt-get install openssl")?;
        programs.give(&made.key_file)?;
        Ok(made)
    }
}
