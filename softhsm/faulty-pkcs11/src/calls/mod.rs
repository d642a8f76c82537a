//! Our functions, which stand in the lists in place of the real ones. All others are the real module's own.
//!
//! A call that only asks how long its output would be is forwarded unseen: it is not the operation.

#![expect(non_snake_case, reason = "they bear the standard's names")]

pub(crate) mod general;
pub(crate) mod interface;
pub(crate) mod key;
pub(crate) mod object;
pub(crate) mod output;
pub(crate) mod plain;
pub(crate) mod session;
pub(crate) mod slot;
