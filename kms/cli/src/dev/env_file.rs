//! `DIR/env`: what a shell needs to talk to the development server, for `. DIR/env`.

use std::{ffi::OsStr, fmt::Write as _, path::Path};

/// Where the running server is, and how to use it.
pub(super) struct Environment<'a> {
    pub(super) addr: &'a str,
    pub(super) cacert: &'a Path,
    pub(super) token_file: &'a Path,
    pub(super) http_addr: &'a str,
    /// The server's configuration, for `kms doctor`.
    pub(super) config: &'a Path,
    /// The token's configuration, for `kms doctor` and `pkcs11-tool`.
    pub(super) softhsm_conf: &'a Path,
    /// Directory of this executable, put in front of PATH.
    pub(super) bin_dir: &'a Path,
}

impl Environment<'_> {
    /// The file's text: one `export` a line, for any POSIX shell. `None` when a path is not UTF-8.
    pub(super) fn to_shell(&self) -> Option<String> {
        let variables = [
            ("KMS_ADDR", OsStr::new(self.addr)),
            ("KMS_CACERT", self.cacert.as_os_str()),
            ("KMS_TOKEN_FILE", self.token_file.as_os_str()),
            ("KMS_HTTP_ADDR", OsStr::new(self.http_addr)),
            ("KMS_CONFIG", self.config.as_os_str()),
            ("SOFTHSM2_CONF", self.softhsm_conf.as_os_str()),
        ];
        let mut text = String::new();
        for (name, value) in variables {
            writeln!(text, "export {name}={}", quoted(value.to_str()?)).ok()?;
        }
        writeln!(text, "export PATH={}:\"$PATH\"", quoted(self.bin_dir.to_str()?)).ok()?;
        Some(text)
    }
}

/// `text` as one word of a POSIX shell (XCU §2.2.2): bare when it is harmless, in single quotes otherwise.
pub(super) fn quoted(text: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "/._-:+@%,".contains(c);
    if !text.is_empty() && text.chars().all(harmless) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_reads_every_word_back_as_it_was() {
        let words =
            ["", "a b", "it's", "$(touch x)", "`id`", "a\\b", "~", "#x", "-n", "é", "\"", "a;b&c|d\n"];
        for word in words {
            let script = format!("printf %s. {}", quoted(word));
            let output = Command::new("sh").args(["-c", &script]).output().expect("sh");
            assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{word}."), "{word:?}");
        }
    }

    #[test]
    fn a_shell_that_reads_the_file_has_every_variable() {
        let environment = Environment {
            addr: "https://127.0.0.1:8443",
            cacert: Path::new("/tmp/it's here/ca.pem"),
            token_file: Path::new("/tmp/it's here/admin-token"),
            http_addr: "http://127.0.0.1:8080",
            config: Path::new("/tmp/it's here/kms.toml"),
            softhsm_conf: Path::new("/tmp/it's here/softhsm2.conf"),
            bin_dir: Path::new("/opt/my kms"),
        };
        let variables = "KMS_ADDR KMS_CACERT KMS_TOKEN_FILE KMS_HTTP_ADDR KMS_CONFIG SOFTHSM2_CONF PATH";
        let quoted: String = variables.split(' ').map(|name| format!(" \"${name}\"")).collect();
        let script = format!("PATH=/bin\n{}\nprintf '%s\\n'{quoted}", environment.to_shell().expect("UTF-8"));
        let output = Command::new("sh").args(["-c", &script]).output().expect("sh");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "https://127.0.0.1:8443\n/tmp/it's here/ca.pem\n/tmp/it's here/admin-token\n\
             http://127.0.0.1:8080\n/tmp/it's here/kms.toml\n/tmp/it's here/softhsm2.conf\n/opt/my kms:/bin\n"
        );
    }
}
