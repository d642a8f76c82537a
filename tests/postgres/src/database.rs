//! One database of a cluster, and how to reach it.

use std::net::SocketAddr;

use crate::{Cluster, secret::Secret};

/// An empty database, owned by a role that nobody else uses.
#[derive(Debug, Clone)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// The role that owns it and may log in.
    pub user: String,
    pub(crate) password: Secret,
}

impl Database {
    /// The role's password.
    pub fn password(&self) -> &str {
        self.password.reveal()
    }

    /// Its URL at `addr` (the cluster's, or that of a proxy before it), in the clear and without the password.
    pub fn url_at(&self, addr: SocketAddr) -> String {
        format!("postgres://{}@{addr}/{}?sslmode=disable", self.user, self.name)
    }

    /// Its URL at `cluster` over TLS, with the server's name verified; without the password.
    pub fn tls_url(&self, cluster: &Cluster) -> String {
        let (addr, ca_file) = (cluster.addr(), cluster.ca_file().display());
        format!("postgres://{}@{addr}/{}?sslmode=verify-full&sslrootcert={ca_file}", self.user, self.name)
    }
}
