//! What `kms dev` says once everything runs: the warning, and three commands to copy.

use std::path::Path;

use super::{SAMPLE_KEY, env_file::quoted};
use crate::{failure::Failure, output};

const WARNING: &str = "  \
  ****************************************************************
  *                                                              *
  *   DEVELOPMENT ONLY: a software token, its PIN in a file,     *
  *   self-made certificates. Not for keys that matter.          *
  *                                                              *
  ****************************************************************";

/// Where everything is.
pub(super) struct Banner<'a> {
    pub(super) addr: &'a str,
    pub(super) http_addr: &'a str,
    pub(super) dir: &'a Path,
    pub(super) temporary: bool,
    pub(super) env_file: &'a Path,
}

impl Banner<'_> {
    /// Prints it to standard output: readers of a pipe wait for its last line.
    pub(super) fn print(&self) -> Result<(), Failure> {
        let warning = output::painted(WARNING, "1;33", output::to_terminal());
        let Self { addr, http_addr, .. } = self;
        let dir = self.dir.display();
        let fate = if self.temporary { "removed at exit; keep it with --dir" } else { "kept" };
        let env_file = quoted(&self.env_file.to_string_lossy());
        output::print_text(&format!(
            "
{warning}

  gRPC    {addr}
  HTTP    {http_addr}
  files   {dir} ({fate})

  In another terminal:

    . {env_file}
    kms jwt sign {SAMPLE_KEY} --claims '{{\"sub\":\"alice\"}}' --ttl 15m
    curl -s $KMS_HTTP_ADDR/.well-known/jwks.json

  Ctrl-C ends it.
"
        ))
    }
}
