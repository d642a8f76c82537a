//! What every request carries: the credential, if there is one, and a deadline when the caller set none.

use std::{fmt, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
};

use crate::{Error, replicas::Replicas};

/// The connections under the generated clients.
pub type Authenticated = InterceptedService<Replicas, Authentication>;

/// Puts `authorization: Bearer …`, with an access token, and, where absent, `grpc-timeout` on each request.
#[derive(Clone)]
pub struct Authentication {
    bearer: Option<MetadataValue<Ascii>>,
    timeout: MetadataValue<Ascii>,
}

impl Authentication {
    pub(crate) fn new(access_token: Option<&SecretString>, timeout: Duration) -> Result<Self, Error> {
        let bearer = access_token.map(bearer).transpose()?;
        // The wire's form of a deadline has at most eight digits (gRPC over HTTP/2, "Timeout").
        let millis = timeout.as_millis().clamp(1, 99_999_999);
        let timeout =
            format!("{millis}m").parse().map_err(|_| Error::invalid("the timeout is out of range"))?;
        Ok(Self { bearer, timeout })
    }
}

fn bearer(access_token: &SecretString) -> Result<MetadataValue<Ascii>, Error> {
    let mut bearer: MetadataValue<Ascii> = format!("Bearer {}", access_token.expose_secret())
        .parse()
        .map_err(|_| Error::invalid("the access token holds characters that no access token has"))?;
    // Keeps it out of HPACK's table and of Debug output.
    bearer.set_sensitive(true);
    Ok(bearer)
}

impl Interceptor for Authentication {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        if let Some(bearer) = &self.bearer {
            metadata.insert("authorization", bearer.clone());
        }
        if !metadata.contains_key("grpc-timeout") {
            metadata.insert("grpc-timeout", self.timeout.clone());
        }
        Ok(request)
    }
}

impl fmt::Debug for Authentication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authentication(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamped(request: Request<()>) -> Request<()> {
        let token = SecretString::from("canary");
        let mut authentication =
            Authentication::new(Some(&token), Duration::from_secs(3)).expect("well-formed");
        assert!(!format!("{authentication:?}").contains("canary"));
        authentication.call(request).expect("never refuses")
    }

    #[test]
    fn the_credential_is_marked_sensitive_and_not_shown() {
        let request = stamped(Request::new(()));
        let bearer = request.metadata().get("authorization").expect("it is there");
        assert!(bearer.is_sensitive());
        assert!(!format!("{request:?}").contains("canary"));
    }

    #[test]
    fn a_credential_that_would_break_out_of_its_header_is_refused() {
        let token = SecretString::from("a\r\nx-admin: 1");
        let error =
            Authentication::new(Some(&token), Duration::from_secs(3)).expect_err("it must be refused");
        assert!(!format!("{error:?} {error}").contains("x-admin"));
    }

    #[test]
    fn without_an_access_token_there_is_no_credential() {
        let mut none = Authentication::new(None, Duration::from_secs(3)).expect("well-formed");
        let request = none.call(Request::new(())).expect("never refuses");
        assert!(request.metadata().get("authorization").is_none());
    }

    #[test]
    fn a_deadline_is_added_only_where_none_is() {
        assert_eq!(stamped(Request::new(())).metadata().get("grpc-timeout").expect("added"), "3000m");
        let mut own = Request::new(());
        own.set_timeout(Duration::from_millis(5));
        assert_ne!(stamped(own).metadata().get("grpc-timeout").expect("kept"), "3000m");
    }
}
