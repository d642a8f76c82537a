//! The HSM of a story: a token alone, behind a server that can be killed, or behind the fault shim.

use std::{ffi::OsString, ops::Deref, path::PathBuf};

use anyhow::bail;
use kms_softhsm::{
    EphemeralToken, RemoteToken, Token,
    faults::{self, environment},
};

use crate::pkcs11_tool;

/// A token and what stands between it and the service.
#[derive(Debug)]
pub enum TestHsm {
    /// Nothing.
    Local(EphemeralToken),
    /// p11-kit's server, the stand-in for a network HSM.
    Remote(Box<RemoteToken>),
    /// The fault shim, under its controller.
    Faulty(EphemeralToken, faults::Controller),
    /// The fault shim without a fault: it writes each use of a key with an IV into a file.
    Recording(EphemeralToken, PathBuf),
}

impl TestHsm {
    /// Puts p11-kit's server before `token`.
    pub fn remote(token: EphemeralToken) -> anyhow::Result<Self> {
        Ok(Self::Remote(Box::new(RemoteToken::in_front_of(token)?)))
    }

    /// Puts the fault shim before `token`, without any rule yet.
    pub fn faulty(token: EphemeralToken) -> anyhow::Result<Self> {
        let dir = token.conf().parent().unwrap_or(token.conf());
        let controller = faults::Controller::start(dir)?;
        Ok(Self::Faulty(token, controller))
    }

    /// Puts the shim before `token`, to write down every IV. [`crate::IvRecord`] reads what it wrote.
    pub fn recording(token: EphemeralToken) -> Self {
        let file = token.conf().with_file_name("ivs");
        Self::Recording(token, file)
    }

    /// The URI by which the service finds it.
    pub fn uri(&self) -> anyhow::Result<String> {
        let uri = self.deref().uri();
        Ok(match self {
            Self::Faulty(token, _) | Self::Recording(token, _) => {
                let (module, shim) = (token.module().display().to_string(), faults::module()?);
                uri.replace(&module, &shim.display().to_string())
            }
            _ => uri,
        })
    }

    /// How often C_Login has reached the token, past the fault shim.
    pub fn logins(&self) -> anyhow::Result<usize> {
        let Self::Faulty(_, controller) = self else { bail!("only the fault shim counts logins") };
        let is_login = |report: &faults::Report| matches!(report.event, faults::Event::Login { .. });
        Ok(controller.reports().iter().filter(|report| is_login(report)).count())
    }

    /// CKA_IDs (hexadecimal) of the private keys in the token, as `pkcs11-tool` sees them, from the token's own side.
    pub fn private_key_ids(&self) -> anyhow::Result<Vec<String>> {
        self.ids("privkey")
    }

    /// The same of the secret keys.
    pub fn secret_key_ids(&self) -> anyhow::Result<Vec<String>> {
        self.ids("secrkey")
    }

    /// The same of all keys that must not leave it: private ones, and secret ones.
    pub fn key_ids(&self) -> anyhow::Result<Vec<String>> {
        Ok([self.ids("privkey")?, self.ids("secrkey")?].concat())
    }

    fn ids(&self, class: &str) -> anyhow::Result<Vec<String>> {
        let near: &Token = match self {
            Self::Remote(remote) => remote.behind(),
            _ => self,
        };
        let output = pkcs11_tool(near, &["--list-objects", "--type", class])?;
        let id = |line: &str| Some(line.trim().strip_prefix("ID:")?.trim().to_owned());
        Ok(output.text()?.lines().filter_map(id).collect())
    }

    /// The variables that lead a process to it.
    pub fn variables(&self) -> Vec<(OsString, OsString)> {
        let (name, value) = self.deref().env();
        let mut env = vec![(name.into(), value.into())];
        match self {
            Self::Faulty(token, controller) => env.extend(controller.env(token.module())),
            Self::Recording(token, file) => env.extend([
                (environment::DEV_FLAG.into(), "1".into()),
                (environment::MODULE.into(), token.module().into()),
                (environment::IVS.into(), file.into()),
            ]),
            Self::Local(_) | Self::Remote(_) => {}
        }
        env
    }
}

impl From<EphemeralToken> for TestHsm {
    fn from(token: EphemeralToken) -> Self {
        Self::Local(token)
    }
}

impl Deref for TestHsm {
    type Target = Token;

    fn deref(&self) -> &Token {
        match self {
            Self::Local(token) | Self::Faulty(token, _) | Self::Recording(token, _) => token,
            Self::Remote(token) => token,
        }
    }
}
