//! What comes in: files, standard input (`-`), claims given in three ways. All of it bounded, so that a wrong
//! file name cannot fill the memory.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read},
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::{failure::Failure, output};

/// A file to read, or `-` for standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    StandardInput,
    File(PathBuf),
}

/// The claims of a token as an argument: JSON itself, `@FILE`, or `-` for standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Claims {
    Json(String),
    From(Source),
}

impl Source {
    /// Reads it whole, at most `bytes_max`.
    pub(crate) fn read(&self, bytes_max: usize) -> Result<Vec<u8>, Failure> {
        match self {
            Self::StandardInput => {
                let stdin = io::stdin().lock();
                if stdin.is_terminal() {
                    output::note("reading from the terminal; end with Ctrl-D");
                }
                read_bounded(stdin, bytes_max, "standard input")
            }
            Self::File(path) => read_file(path, bytes_max),
        }
    }
}

impl Claims {
    /// The claims as the caller gave them, at most `bytes_max`.
    pub(crate) fn read(self, bytes_max: usize) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Json(text) => Ok(text.into_bytes()),
            Self::From(source) => source.read(bytes_max),
        }
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("a file name cannot be empty; use - for standard input".to_owned()),
            "-" => Ok(Self::StandardInput),
            path => Ok(Self::File(PathBuf::from(path))),
        }
    }
}

impl FromStr for Claims {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('@') {
            Some(path) => path.parse().map(Self::From),
            None if text == "-" => Ok(Self::From(Source::StandardInput)),
            None if text.trim_start().starts_with('{') => Ok(Self::Json(text.to_owned())),
            None => Err("claims are a JSON object, @FILE, or - for standard input".to_owned()),
        }
    }
}

/// Reads a file whole, at most `bytes_max`.
pub(crate) fn read_file(path: &Path, bytes_max: usize) -> Result<Vec<u8>, Failure> {
    let file = File::open(path).map_err(Failure::about(path.display()))?;
    read_bounded(file, bytes_max, path.display())
}

/// Reads a small text file, such as a PIN or a credential's, without its trailing line end.
pub(crate) fn read_line_file(path: &Path, bytes_max: usize) -> Result<String, Failure> {
    let bytes = read_file(path, bytes_max)?;
    let text =
        String::from_utf8(bytes).map_err(|_| Failure::usage(format!("{}: not UTF-8", path.display())))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn read_bounded(
    source: impl Read,
    bytes_max: usize,
    name: impl std::fmt::Display,
) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    source.take(limit).read_to_end(&mut bytes).map_err(Failure::about(&name))?;
    if bytes.len() > bytes_max {
        return Err(Failure::usage(format!("{name} is larger than {bytes_max} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_json_nor_a_file_is_refused() {
        for bad in ["", "sub=alice", "[1]", "\"text\"", "claims.json", "@"] {
            assert!(bad.parse::<Claims>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn claims_come_in_three_forms() {
        let file = |path: &str| Ok(Claims::From(Source::File(path.into())));
        assert_eq!(" {\"sub\":\"a\"}".parse(), Ok(Claims::Json(" {\"sub\":\"a\"}".to_owned())));
        assert_eq!("@claims.json".parse(), file("claims.json"));
        assert_eq!("-".parse(), Ok(Claims::From(Source::StandardInput)));
        assert_eq!("@-".parse(), Ok(Claims::From(Source::StandardInput)));
    }

    #[test]
    fn one_byte_too_many_is_refused_and_the_limit_itself_is_not() {
        assert!(read_bounded(&[0; 9][..], 8, "input").is_err());
        assert_eq!(read_bounded(&[0; 8][..], 8, "input").expect("8 bytes").len(), 8);
    }
}
