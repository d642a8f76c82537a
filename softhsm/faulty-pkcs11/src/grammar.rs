//! The grammar between controller and shim: the controller's own source files, so that there is one.

#[path = "../../src/faults/environment.rs"]
pub mod environment;
#[path = "../../src/faults/fault.rs"]
pub mod fault;
#[path = "../../src/faults/function.rs"]
pub mod function;
#[path = "../../src/faults/line.rs"]
pub mod line;
#[path = "../../src/faults/script.rs"]
pub mod script;
