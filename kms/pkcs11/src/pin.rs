//! Reading a PIN from its file: once, by the process that logs in, wiped after use.

use std::{fs::File, io::Read, path::Path};

use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::module::TokenError;

/// Longest PIN file in bytes.
const PIN_LEN_MAX: usize = 1024;

/// The PIN in `path`, without one trailing line end.
pub(crate) fn read(path: &Path) -> Result<SecretString, TokenError> {
    let refuse = |why: String| TokenError::PinFile { path: path.to_owned(), why };
    // One buffer of the full size, so that no grown copy of the PIN stays behind in the heap.
    let mut buffer = Zeroizing::new([0; PIN_LEN_MAX + 1]);
    let mut file = File::open(path).map_err(|error| refuse(error.to_string()))?;
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..]).map_err(|error| refuse(error.to_string()))? {
            0 => break,
            more => len += more,
        }
    }
    if len > PIN_LEN_MAX {
        return Err(refuse(format!("it is longer than {PIN_LEN_MAX} bytes")));
    }
    let pin = buffer[..len].strip_suffix(b"\n").unwrap_or(&buffer[..len]);
    let pin = pin.strip_suffix(b"\r").unwrap_or(pin);
    match std::str::from_utf8(pin) {
        Ok("") => Err(refuse("it is empty".to_owned())),
        Ok(pin) => Ok(SecretString::from(pin)),
        Err(_) => Err(refuse("it is not UTF-8".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn from(bytes: &[u8]) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read(file.path()).map(|pin| pin.expose_secret().to_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn empty_overlong_binary_and_missing_files_are_refused() {
        for bad in [&b""[..], b"\n", &[b'1'; PIN_LEN_MAX + 1], b"\xff1234"] {
            assert!(from(bad).is_err());
        }
        assert!(read(Path::new("/nonexistent/pin")).is_err());
    }

    #[test]
    fn one_line_end_is_dropped_and_nothing_else() {
        assert_eq!(from(b"12 34\n").unwrap(), "12 34");
        assert_eq!(from(b"1234\r\n").unwrap(), "1234");
        assert_eq!(from(b" 1234\n\n").unwrap(), " 1234\n");
    }
}
