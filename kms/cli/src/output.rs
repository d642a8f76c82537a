//! What goes out: the only place that writes to standard output and standard error.
//!
//! Results go to standard output as a table, as JSON or as YAML; everything said *about* the work goes to
//! standard error. A reader that went away (`kms keys list | head`) ends the command quietly, unless it missed a
//! credential that is shown only once. Colours only on a terminal that wants them (<https://no-color.org>).

use std::{
    fs::File,
    io::{self, ErrorKind, IsTerminal as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_yaml_ng::Value;

use crate::{
    failure::Failure,
    partial::{self, Existing, Partial},
};

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    // Comments and not documentation: `--help` of every command would repeat them.
    // For people; its layout may change.
    Table,
    // For programs; fields are only ever added.
    Json,
    // The same fields as JSON.
    Yaml,
}

impl Format {
    /// Prints one thing: as a table, a line per field.
    pub(crate) fn print_one(self, item: &impl Serialize) -> Result<(), Failure> {
        print_text(&self.one(item)?)
    }

    /// One thing as text: as a table, a line per field.
    pub(crate) fn one(self, item: &impl Serialize) -> Result<String, Failure> {
        if self != Self::Table {
            return self.all(item);
        }
        let mut table = plain_table();
        if let Value::Mapping(fields) = value_of(item)? {
            for (name, field) in &fields {
                table.add_row([cell(name).replace('_', " "), cell(field)]);
            }
        }
        Ok(table.trim_fmt())
    }

    /// Prints a list: as a table, a line per item with the named fields as columns.
    pub(crate) fn print_list(self, items: &[impl Serialize], columns: &[&str]) -> Result<(), Failure> {
        print_text(&self.list(items, columns)?)
    }

    /// A list as text: as a table, a line per item with the named fields as columns.
    pub(crate) fn list(self, items: &[impl Serialize], columns: &[&str]) -> Result<String, Failure> {
        if self != Self::Table {
            return self.all(&items);
        }
        let mut table = plain_table();
        table.set_header(columns.iter().map(|name| name.replace('_', " ").to_uppercase()));
        for item in items {
            let item = value_of(item)?;
            table.add_row(columns.iter().map(|name| cell(&item[*name])));
        }
        Ok(table.trim_fmt())
    }

    /// Prints `text` alone as a table would, `item` with all its fields otherwise.
    pub(crate) fn print_text_or(self, text: &str, item: &impl Serialize) -> Result<(), Failure> {
        if self == Self::Table { print_text(text) } else { print_text(&self.all(item)?) }
    }

    /// The whole item, for programs.
    pub(crate) fn all(self, item: &impl Serialize) -> Result<String, Failure> {
        match self {
            Self::Yaml => serde_yaml_ng::to_string(item).map_err(Failure::about("cannot write YAML")),
            Self::Table | Self::Json => {
                serde_json::to_string_pretty(item).map_err(Failure::about("cannot write JSON"))
            }
        }
    }
}

/// Prints text, with a line end after it if it has none.
pub(crate) fn print_text(text: &str) -> Result<(), Failure> {
    print_bytes(ended(text).as_bytes())
}

/// Prints bytes as they are.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    match write(io::stdout().lock(), bytes) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::other(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a credential that nobody can be shown again: a reader that went away is an error too. `remedy` says
/// what to do then.
pub(crate) fn print_credential(text: &str, remedy: &str) -> Result<(), Failure> {
    show_credential(io::stdout().lock(), text, remedy)
}

fn show_credential(out: impl io::Write, text: &str, remedy: &str) -> Result<(), Failure> {
    write(out, ended(text).as_bytes()).map_err(|error| {
        Failure::other(format!("the credential was made and could not be shown: {error}")).hint(remedy)
    })
}

fn ended(text: &str) -> String {
    let line_end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{line_end}")
}

fn write(mut out: impl io::Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}

/// Writes bytes to a new or emptied file.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    File::create(path).and_then(|mut file| file.write_all(bytes)).map_err(Failure::about(path.display()))
}

/// Writes beside `path` and moves it there, so that a reader sees the old file or the new one, also after a crash.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    place_file(path, bytes, 0o666, Existing::Replace).map_err(Failure::about(path.display()))
}

/// Gives the name `path` to a file that is whole, or to none.
pub(crate) fn place_file(path: &Path, bytes: &[u8], mode: u32, existing: Existing) -> io::Result<()> {
    let dir = partial::dir_of(path);
    partial::sweep(dir);
    let partial = Partial::of(path, mode)?;
    partial.file().write_all(bytes)?;
    partial.keep(existing)?;
    partial::sync_dir(dir)
}

/// Opens a file for a secret before the secret exists, so that nothing is made that cannot be kept.
pub(crate) fn create_new_secret_file(path: &Path) -> Result<File, Failure> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    file.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Failure::usage(format!("{} exists already", path.display()))
            .hint("remove it, or name another file: a secret is never written over"),
        _ => Failure::about(path.display())(error),
    })
}

/// Whether standard output is a terminal.
pub(crate) fn to_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether people watch standard error.
pub(crate) fn watched() -> bool {
    io::stderr().is_terminal()
}

/// Tells the person at the terminal something that is not a result.
pub(crate) fn note(text: &str) {
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints a failure: `error: ...`, and `hint: ...` when there is one.
pub(crate) fn report(failure: &Failure) {
    note(&format!("{} {}", painted("error:", "1;31", watched()), one_line(failure.message())));
    if let Some(hint) = failure.hint_text() {
        note(&format!("{} {}", painted("hint:", "1;36", watched()), one_line(hint)));
    }
}

/// `text` in an SGR colour (ECMA-48 §8.3.117) if it goes to a terminal, and one that wants colours.
pub(crate) fn painted(text: &str, colour: &str, to_terminal: bool) -> String {
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if to_terminal && wanted { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// What a server says is shown on one line and cannot steer the terminal.
pub(crate) fn one_line(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The same of a text of several lines.
pub(crate) fn lines(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { ' ' } else { c }).collect()
}

/// The item as a tree whose fields keep their order, which `serde_json::Value` would sort.
fn value_of(item: &impl Serialize) -> Result<Value, Failure> {
    serde_yaml_ng::to_value(item).map_err(Failure::about("cannot write the result"))
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

/// A field in a table cell: maps as `k=v`, nothing as `-`, control characters gone.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null | Value::Tagged(_) => String::new(),
        Value::Bool(value) => if *value { "yes" } else { "no" }.to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Sequence(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        Value::Mapping(fields) => fields
            .iter()
            .map(|(name, field)| format!("{}={}", cell(name), cell(field)))
            .collect::<Vec<_>>()
            .join(","),
    };
    if text.is_empty() { "-".to_owned() } else { one_line(&text) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn cell_of(item: serde_json::Value) -> String {
        cell(&value_of(&item).expect("a tree"))
    }

    #[test]
    fn a_credential_that_its_reader_did_not_take_is_an_error_that_says_what_to_do() {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let failure = show_credential(writer, "kms_secret", "make another").expect_err("nobody saw it");
        assert!(failure.message().contains("could not be shown"), "{}", failure.message());
        assert!(!failure.message().contains("kms_secret"));
        assert_eq!(failure.hint_text(), Some("make another"));
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("keys.json");
        for text in ["one", "another"] {
            replace_file(&path, text.as_bytes()).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("a file"), text);
        }
        replace_file(&dir.path().join("absent/keys.json"), b"x").expect_err("no such directory");
        fs::create_dir(dir.path().join("taken")).expect("made");
        replace_file(&dir.path().join("taken"), b"x").expect_err("a directory is not replaced");
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).expect("listed").map(|file| file.expect("a file").file_name()).collect();
        left.sort_unstable();
        assert_eq!(left, ["keys.json", "taken"]);
    }

    #[test]
    fn a_server_cannot_steer_the_terminal() {
        assert_eq!(one_line("a\u{1b}[2Jb\nc\u{7}"), "a [2Jb c ");
        assert_eq!(lines("a\u{1b}[2Jb\n\tc\r"), "a [2Jb\n\tc ");
        assert_eq!(cell_of(json!("x\u{9b}31my")), "x 31my");
    }

    #[test]
    fn cells_show_maps_lists_and_nothing() {
        assert_eq!(cell_of(json!({"env": "prod", "team": "a"})), "env=prod,team=a");
        assert_eq!(cell_of(json!(["keys/a", "keys/b"])), "keys/a,keys/b");
        for nothing in [json!(null), json!(""), json!([]), json!({})] {
            assert_eq!(cell_of(nothing), "-");
        }
    }
}
