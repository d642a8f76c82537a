//! The format, from outside: what opens, and above all what does not.

mod custody;
mod sizes;
