//! .env files, strictly: only what every dialect of them reads the same. A line is `NAME=VALUE`, perhaps after `export `,
//! or a comment, or empty. A value is bare (no spaces, quotes, `$`, `\` or `#` in it), in single quotes as it stands, or in
//! double quotes, where `\n`, `\r`, `\t`, `\\`, `\"` and `\$` are escapes; in quotes it may have several lines. Nothing is
//! expanded: a password with a `$` in it stays what it is, and where a dialect would have expanded it, it is refused.
//!
//! Our own reader, because those that there are repeat the line, and so the value, in their errors, and expand.

use std::{borrow::Cow, collections::HashMap, str};

use kms_client::envelope::SecretBytes;
use zeroize::Zeroizing;

/// A variable. Its value has no zero byte.
#[derive(Debug)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: SecretBytes,
}

/// What is wrong, and in which line. It never repeats a value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Error {
    line: usize,
    what: Cow<'static, str>,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// The variables in their order.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Variable>, Error> {
    let text = str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        Error { line, what: "this is not UTF-8".into() }
    })?;
    let mut reader = Reader { rest: text.strip_prefix('\u{feff}').unwrap_or(text), line: 1 };
    let mut variables = Vec::new();
    let mut lines: HashMap<String, usize> = HashMap::new();
    while !reader.rest.is_empty() {
        let line = reader.line;
        if let Some(variable) = reader.variable()? {
            if let Some(first) = lines.insert(variable.name.clone(), line) {
                let what = format!("{} stands in line {first} already; remove one of them", variable.name);
                return Err(Error { line, what: what.into() });
            }
            variables.push(variable);
        }
    }
    Ok(variables)
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Reader<'a> {
    /// Reads a line, or as many as a value has; `None` if it says nothing.
    fn variable(&mut self) -> Result<Option<Variable>, Error> {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
        if self.rest.starts_with(['#', '\n', '\r']) || self.rest.is_empty() {
            self.end_of_line()?;
            return Ok(None);
        }
        if let Some(rest) = self.rest.strip_prefix("export ") {
            self.rest = rest.trim_start_matches([' ', '\t']);
        }
        let name = self.name()?;
        let value = match self.rest.as_bytes().first() {
            Some(b'\'') => self.single_quoted()?,
            Some(b'"') => self.double_quoted()?,
            _ => self.bare()?,
        };
        if self.rest.starts_with('#') {
            return self.wrong("a comment after a value begins with a space");
        }
        self.end_of_line()?;
        Ok(Some(Variable { name, value }))
    }

    fn name(&mut self) -> Result<String, Error> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return self.wrong("a name is one of letters, digits and _, and does not begin with a digit");
        }
        let Some(rest) = rest.strip_prefix('=') else {
            return self.wrong("NAME=VALUE is expected, without a space before =");
        };
        self.rest = rest;
        Ok(name.to_owned())
    }

    fn bare(&mut self) -> Result<SecretBytes, Error> {
        let end = self.rest.find([' ', '\t', '\r', '\n']).unwrap_or(self.rest.len());
        let (value, rest) = self.rest.split_at(end);
        if value.contains(['\'', '"', '`', '$', '\\', '#', '\0']) {
            return self.wrong(
                "a value with one of ' \" ` $ \\ # in it must be quoted; in single quotes it stays as it is",
            );
        }
        if value.is_empty() && rest.starts_with([' ', '\t']) && !is_end(rest) {
            return self.wrong("there is a space after =; remove it, or quote the value");
        }
        self.rest = rest;
        Ok(SecretBytes::new(value.as_bytes().to_vec()))
    }

    fn single_quoted(&mut self) -> Result<SecretBytes, Error> {
        let Some((value, rest)) = self.rest[1..].split_once('\'') else {
            return self.wrong("the single quote that begins here has no end");
        };
        if value.contains('\0') {
            return self.wrong("a value cannot have a zero byte");
        }
        self.rest = rest;
        self.line += value.matches('\n').count();
        Ok(SecretBytes::new(value.as_bytes().to_vec()))
    }

    fn double_quoted(&mut self) -> Result<SecretBytes, Error> {
        let Some((text, rest)) = closing_quote(&self.rest[1..]) else {
            return self.wrong("the double quote that begins here has no end");
        };
        // Of that length at once: a buffer that grows would leave copies behind.
        let mut value = Zeroizing::new(Vec::with_capacity(text.len()));
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            let plain = match byte {
                b'\\' => match bytes.next() {
                    Some(b'n') => b'\n',
                    Some(b'r') => b'\r',
                    Some(b't') => b'\t',
                    Some(plain @ (b'\\' | b'"' | b'$')) => plain,
                    _ => return self.wrong(r#"in double quotes \ is followed by n, r, t, \, " or $ only"#),
                },
                b'$' => {
                    return self
                        .wrong(r"nothing is expanded: write $ in double quotes as \$, or use single quotes");
                }
                b'`' => {
                    return self.wrong("nothing is executed: a value with ` in it stands in single quotes");
                }
                0 => return self.wrong("a value cannot have a zero byte"),
                plain => plain,
            };
            value.push(plain);
        }
        self.rest = rest;
        self.line += text.matches('\n').count();
        Ok(SecretBytes::new(std::mem::take(&mut *value)))
    }

    /// After a value there may be spaces, and then a comment.
    fn end_of_line(&mut self) -> Result<(), Error> {
        if !is_end(self.rest) {
            return self.wrong("something follows the value; a value with spaces must be quoted");
        }
        self.rest = self.rest.split_once('\n').map_or("", |(_, rest)| rest);
        self.line += 1;
        Ok(())
    }

    fn wrong<T>(&self, what: &'static str) -> Result<T, Error> {
        Err(Error { line: self.line, what: what.into() })
    }
}

/// What stands before the quote that is not escaped, and after it.
fn closing_quote(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' if !escaped => return Some((&text[..at], &text[at + 1..])),
            byte => escaped = byte == b'\\' && !escaped,
        }
    }
    None
}

/// Whether only spaces, or a comment, stand before the end of the line.
fn is_end(rest: &str) -> bool {
    let line = rest.split('\n').next().unwrap_or_default();
    let trimmed = line.trim_matches([' ', '\t', '\r']);
    trimmed.is_empty() || trimmed.starts_with('#')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, String> {
        let variables = parse(text.as_bytes()).map_err(|error| error.to_string())?;
        let pair =
            |v: Variable| (v.name, String::from_utf8(v.value.expose_secret().to_vec()).expect("UTF-8"));
        Ok(variables.into_iter().map(pair).collect())
    }

    fn value(text: &str) -> String {
        let mut all = read(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert_eq!(all.len(), 1, "{text:?}");
        all.remove(0).1
    }

    #[test]
    fn what_dialects_read_differently_is_refused_by_its_line_and_without_its_value() {
        let cases = [
            "hunter2",
            "=hunter2",
            "1A=hunter2",
            "A-B=hunter2",
            "A =hunter2",
            "A= hunter2",
            "A=hunter2 hunter2",
            "A=hunter2#hunter2",
            "A='hunter2'#hunter2",
            "A='hunter2'hunter2",
            "A=\"hunter2\"'hunter2'",
            "A=hunter2$B",
            "A=\"hunter2 $B\"",
            "A=\"hunter2 ${B}\"",
            "A=\"`hunter2`\"",
            "A=hunter2\\n",
            "A=\"hunter2\\x\"",
            "A=hunter2'",
            "A='hunter2",
            "A=\"hunter2\\\"",
            "A='hunter2\0'",
            "export A",
            "A: hunter2",
            "A=hunter2\rB=c",
        ];
        for case in cases {
            let error = read(&format!("# one\n\n{case}")).expect_err(case);
            assert!(error.starts_with("line 3: "), "{case:?}: {error}");
            assert!(!error.contains("hunter2"), "{case:?}: {error}");
        }
        let error = parse(b"A=b\nC=\xff").expect_err("not UTF-8").to_string();
        assert!(error.starts_with("line 2: "), "{error}");
    }

    #[test]
    fn a_name_stands_once() {
        let error = read("A=1\nB='\n'\nA=2").expect_err("twice");
        assert_eq!(error, "line 4: A stands in line 1 already; remove one of them");
    }

    #[test]
    fn values_are_read_as_they_are_meant() {
        let cases = [
            ("A=b", "b"),
            ("A=", ""),
            ("A= # none", ""),
            ("A=b # comment", "b"),
            ("  export  A=b\r\n", "b"),
            ("A=a=b&c:/d?e", "a=b&c:/d?e"),
            ("A='pa$$ \\n \"word\"'", "pa$$ \\n \"word\""),
            (r#"A="a \"b\" \\ \$c\n""#, "a \"b\" \\ $c\n"),
            ("A=\"one\ntwo\" # comment", "one\ntwo"),
            ("A='#no comment'", "#no comment"),
            ("A=\"\\\\\"", "\\"),
            ("\u{feff}A=ü", "ü"),
        ];
        for (text, wanted) in cases {
            assert_eq!(value(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn lines_that_say_nothing_are_passed_over() {
        let all = read("# a\n\n \t# b\r\nA=1\n\nB=\"2\n3\"\nC=4\n").expect("three");
        let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["A", "B", "C"]);
        assert_eq!(read(""), Ok(vec![]));
    }
}
