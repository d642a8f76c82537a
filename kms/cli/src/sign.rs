//! `kms sign` and `kms verify`: signatures over files and standard input.

use clap::{Args, ValueEnum};
use kms_client::v1::{self, SignatureFormat, sign_request, verify_request};

use crate::{
    connection::Connection,
    failure::{Code, Failure},
    input::Source,
    name::KeyName,
    output::{self, Format},
    view,
};

/// The service's own limit on messages.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// The service's own limit on signatures.
const SIGNATURE_BYTES_MAX: usize = 2 * 1024;

/// Sign a file or standard input
#[derive(Debug, Args)]
pub(crate) struct Sign {
    /// Name of the key
    name: KeyName,
    /// Number of the version; without it the one that signs now
    #[arg(long, value_name = "N")]
    version: Option<u32>,
    #[command(flatten)]
    input: Input,
    /// Where the signature goes, - for standard output; without it to standard output, as base64 on a terminal
    #[arg(long, value_name = "FILE")]
    out: Option<Source>,
    #[command(flatten)]
    connection: Connection,
}

/// Verify a signature over a file or standard input; exit code 7 when it is not valid
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Name of the key
    name: KeyName,
    /// Number of the version; without it every version that may still verify is tried
    #[arg(long, value_name = "N")]
    version: Option<u32>,
    #[command(flatten)]
    input: Input,
    /// File with the signature as `kms sign` writes it, - for standard input
    #[arg(long, value_name = "FILE")]
    signature: Source,
    #[command(flatten)]
    connection: Connection,
}

/// What is signed, and how the signature looks.
#[derive(Debug, Args)]
struct Input {
    /// What is signed, at most 64 KiB; - for standard input
    #[arg(long = "in", value_name = "FILE", default_value = "-")]
    source: Source,
    /// The input is the message's digest already, in bytes, by the hash of the key's algorithm
    #[arg(long)]
    digest: bool,
    /// Form of ECDSA signatures
    #[arg(long, value_enum, default_value_t = SignatureForm::Der)]
    format: SignatureForm,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SignatureForm {
    /// A DER sequence, as X.509, TLS and OpenSSL use it
    Der,
    /// r and s side by side, as JOSE, COSE and WebCrypto use it
    Jose,
}

impl Sign {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        let bytes = self.input.read()?;
        let input = match self.input.digest {
            true => sign_request::Input::Digest(bytes),
            false => sign_request::Input::Message(bytes),
        };
        let request = v1::SignRequest {
            name: self.name.maybe_version(self.version),
            input: Some(input),
            signature_format: self.input.format.on_the_wire().into(),
        };
        let response = self.connection.client().await?.sign(request).await?;
        let signature = response.signature.clone();
        let shown = view::Signature::from(response);
        match (self.out, format) {
            (Some(Source::File(path)), format) => {
                output::write_file(&path, &signature)?;
                if format == Format::Table { Ok(()) } else { format.print_one(&shown) }
            }
            (None, Format::Table) if output::to_terminal() => output::print_text(shown.base64()),
            (_, Format::Table) => output::print_bytes(&signature),
            (_, format) => format.print_one(&shown),
        }
    }
}

impl Verify {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        if (&self.input.source, &self.signature) == (&Source::StandardInput, &Source::StandardInput) {
            return Err(Failure::usage("--in and --signature cannot both come from standard input")
                .hint("name a file for one of them"));
        }
        let bytes = self.input.read()?;
        let input = match self.input.digest {
            true => verify_request::Input::Digest(bytes),
            false => verify_request::Input::Message(bytes),
        };
        let request = v1::VerifyRequest {
            name: self.name.maybe_version(self.version),
            input: Some(input),
            signature: self.signature.read(SIGNATURE_BYTES_MAX)?,
            signature_format: self.input.format.on_the_wire().into(),
        };
        let response = self.connection.client().await?.verify(request).await?;
        let verification = view::Verification::from(response);
        let text = verification.name.as_ref().map_or_else(String::new, |name| format!("valid: {name}"));
        format.print_text_or(&text, &verification)?;
        if verification.valid {
            Ok(())
        } else {
            Err(Failure::new(Code::NotVerified, format!("the signature is not by {}", self.name))
                .hint("check the input, --format and --digest, and that the version is not disabled"))
        }
    }
}

impl Input {
    fn read(&self) -> Result<Vec<u8>, Failure> {
        self.source.read(MESSAGE_BYTES_MAX).map_err(|failure| match failure.code() {
            Code::Usage => failure.hint(
                "sign the digest of a large message: openssl dgst -sha256 -binary FILE | kms sign NAME --digest",
            ),
            _ => failure,
        })
    }
}

impl SignatureForm {
    fn on_the_wire(self) -> SignatureFormat {
        match self {
            Self::Der => SignatureFormat::Der,
            Self::Jose => SignatureFormat::Jose,
        }
    }
}
