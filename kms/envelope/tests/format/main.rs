//! The format, from outside: what opens, and above all what does not (promise 13).
#![expect(clippy::unwrap_used, reason = "a test's own steps must succeed")]

mod bindings;
mod contexts;
mod custody;
mod headers;
mod properties;
mod recipients;
mod sizes;
mod streams;
mod tampered;
mod vectors;
