//! The `pkcs11:` URI (RFC 7512) that names a token, its module and where its PIN lies.
//!
//! Taken: `token`, `serial`, `manufacturer`, `model`, and after `?` `module-path` and `pin-source` (a path or a
//! `file:` URI). Refused on purpose: `pin-value`, for a PIN must not stand in a configuration, and `slot-id`, for
//! slot numbers move. Everything else is refused too, so that a typing error cannot widen what is matched.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Names exactly one token, through one module. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    /// CKA label of the token (`CK_TOKEN_INFO.label`).
    pub token: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Its manufacturer.
    pub manufacturer: Option<String>,
    /// Its model.
    pub model: Option<String>,
    /// The PKCS#11 module, an absolute path.
    pub module_path: PathBuf,
    /// The file that holds the user PIN, an absolute path.
    pub pin_source: Option<PathBuf>,
}

/// Why a text is not a usable URI. The text says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pkcs11 URI: {0}")]
pub struct InvalidUri(String);

impl Uri {
    /// Longest URI in bytes.
    pub const LEN_MAX: usize = 4096;

    /// Whether a token with these properties is meant. Compares only what the URI names.
    pub fn matches(&self, label: &str, serial: &str, manufacturer: &str, model: &str) -> bool {
        let same =
            |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|w| w == found.trim_end());
        same(&self.token, label)
            && same(&self.serial, serial)
            && same(&self.manufacturer, manufacturer)
            && same(&self.model, model)
    }

    /// The token part alone, for messages.
    pub fn token_part(&self) -> String {
        let named = [
            ("token", &self.token),
            ("serial", &self.serial),
            ("manufacturer", &self.manufacturer),
            ("model", &self.model),
        ];
        let parts =
            named.iter().filter_map(|(name, value)| value.as_ref().map(|v| format!("{name}={}", encode(v))));
        format!("pkcs11:{}", parts.collect::<Vec<_>>().join(";"))
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), InvalidUri> {
        let place = match name {
            "token" => &mut self.token,
            "serial" => &mut self.serial,
            "manufacturer" => &mut self.manufacturer,
            "model" => &mut self.model,
            "slot-id" => return Err(invalid("slot-id is refused, slot numbers move; use serial= or token=")),
            "object" | "id" | "type" => {
                return Err(invalid(format!("{name} names an object; this URI must name a token")));
            }
            _ => {
                return Err(invalid(format!(
                    "unknown attribute {name:?}; use token=, serial=, manufacturer= or model="
                )));
            }
        };
        if place.replace(value).is_some() {
            return Err(invalid(format!("{name} stands there twice")));
        }
        Ok(())
    }
}

impl FromStr for Uri {
    type Err = InvalidUri;

    fn from_str(text: &str) -> Result<Self, InvalidUri> {
        if text.len() > Self::LEN_MAX {
            return Err(invalid(format!("longer than {} bytes", Self::LEN_MAX)));
        }
        let rest = text.strip_prefix("pkcs11:").ok_or_else(|| invalid("it must begin with \"pkcs11:\""))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self {
            token: None,
            serial: None,
            manufacturer: None,
            model: None,
            module_path: PathBuf::new(),
            pin_source: None,
        };
        for pair in path.split(';').filter(|pair| !pair.is_empty()) {
            let (name, value) = attribute(pair)?;
            uri.set(name, value)?;
        }
        let (mut module_path, mut pin_source) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = attribute(pair)?;
            let place = match name {
                "module-path" => &mut module_path,
                "pin-source" => &mut pin_source,
                "pin-value" => {
                    return Err(invalid(
                        "pin-value is refused, a PIN must not stand in a configuration; use pin-source=",
                    ));
                }
                _ => {
                    return Err(invalid(format!(
                        "unknown query attribute {name:?}; use module-path= and pin-source="
                    )));
                }
            };
            if place.replace(absolute(name, &value)?).is_some() {
                return Err(invalid(format!("{name} stands there twice")));
            }
        }
        if uri.token.is_none() && uri.serial.is_none() {
            return Err(invalid("name the token by serial= or token="));
        }
        uri.module_path = module_path.ok_or_else(|| invalid("module-path= is missing after \"?\""))?;
        uri.pin_source = pin_source;
        Ok(uri)
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}?module-path={}", self.token_part(), encode(&self.module_path.to_string_lossy()))?;
        match &self.pin_source {
            Some(path) => write!(f, "&pin-source={}", encode(&path.to_string_lossy())),
            None => Ok(()),
        }
    }
}

fn attribute(pair: &str) -> Result<(&str, String), InvalidUri> {
    let (name, value) =
        pair.split_once('=').ok_or_else(|| invalid(format!("{pair:?} is not of the form name=value")))?;
    let value =
        decode(value).ok_or_else(|| invalid(format!("the value of {name} is badly percent-encoded")))?;
    if value.is_empty() {
        return Err(invalid(format!("{name} is empty")));
    }
    Ok((name, value))
}

/// A plain path, or the path of a `file:` URI without a host (RFC 8089).
fn absolute(name: &str, value: &str) -> Result<PathBuf, InvalidUri> {
    let path = match value.strip_prefix("file:") {
        Some(rest) => rest
            .strip_prefix("//localhost/")
            .map_or_else(|| rest.strip_prefix("//").unwrap_or(rest).to_owned(), |path| format!("/{path}")),
        None => value.to_owned(),
    };
    if path.starts_with('|') {
        return Err(invalid(format!("{name} must be a file; commands are not run")));
    }
    if !Path::new(&path).is_absolute() {
        return Err(invalid(format!("{name} must be an absolute path")));
    }
    Ok(PathBuf::from(path))
}

fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    // A NUL would end the text early in C.
    String::from_utf8(out).ok().filter(|text| !text.contains('\0'))
}

fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/:@+".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

fn invalid(text: impl Into<String>) -> InvalidUri {
    InvalidUri(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        text.parse::<Uri>().unwrap_err().to_string()
    }

    #[test]
    fn a_pin_in_the_uri_is_refused() {
        assert!(refusal("pkcs11:token=a?module-path=/m.so&pin-value=1234").contains("pin-source"));
    }

    #[test]
    fn a_slot_number_is_refused() {
        assert!(refusal("pkcs11:slot-id=3?module-path=/m.so").contains("slot numbers move"));
    }

    #[test]
    fn what_is_unknown_twice_empty_relative_or_broken_is_refused() {
        for bad in [
            "",
            "PKCS11:token=a?module-path=/m.so",
            "pkcs11:?module-path=/m.so",
            "pkcs11:token=a",
            "pkcs11:tokne=a?module-path=/m.so",
            "pkcs11:token=a;token=b?module-path=/m.so",
            "pkcs11:token=a?module-path=/m.so&module-path=/n.so",
            "pkcs11:token=?module-path=/m.so",
            "pkcs11:token=a?module-path=m.so",
            "pkcs11:token=a?module-path=/m.so&pin-source=|cat",
            "pkcs11:token=a?module-path=/m.so&pin-source=file:pin",
            "pkcs11:token=a?module-path=/m.so&x-vendor=1",
            "pkcs11:token=a%2?module-path=/m.so",
            "pkcs11:token=a%zz?module-path=/m.so",
            "pkcs11:token=a%00?module-path=/m.so",
            "pkcs11:token=%ff?module-path=/m.so",
            "pkcs11:token?module-path=/m.so",
            "pkcs11:object=k;token=a?module-path=/m.so",
        ] {
            assert!(bad.parse::<Uri>().is_err(), "{bad:?} was taken");
        }
        let long = format!("pkcs11:token={}?module-path=/m.so", "a".repeat(Uri::LEN_MAX));
        assert!(long.parse::<Uri>().is_err());
    }

    #[test]
    fn a_full_uri_is_decoded_and_reads_back_as_itself() {
        let uri: Uri =
            "pkcs11:token=My%20token;serial=a1?module-path=/usr/lib/m.so&pin-source=file:///run/pin"
                .parse()
                .unwrap();
        assert_eq!(uri.token.as_deref(), Some("My token"));
        assert_eq!(uri.pin_source.as_deref(), Some(Path::new("/run/pin")));
        assert_eq!(uri.to_string().parse::<Uri>().unwrap(), uri);
        assert!(uri.matches("My token  ", "a1", "anyone", "any"));
        assert!(!uri.matches("My token", "a2", "anyone", "any"));
    }

    #[test]
    fn the_ways_to_write_a_file_mean_the_same() {
        for source in ["/run/pin", "file:/run/pin", "file:///run/pin", "file://localhost/run/pin"] {
            let uri: Uri = format!("pkcs11:token=a?pin-source={source}&module-path=/m.so").parse().unwrap();
            assert_eq!(uri.pin_source.as_deref(), Some(Path::new("/run/pin")), "{source}");
        }
    }
}
