//! The server's own log, as its operator reads it.

use std::{
    fmt::{Debug, Write as _},
    sync::{Arc, Mutex, PoisonError},
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::{DefaultGuard, set_default},
};

/// Whatever this thread logs from now on.
pub struct ServerLog {
    text: Arc<Mutex<String>>,
    _installed: DefaultGuard,
}

struct Writer(Arc<Mutex<String>>);

impl ServerLog {
    /// Begins to keep it.
    pub fn keep() -> Self {
        let text = Arc::default();
        let installed = set_default(Writer(Arc::clone(&text)));
        Self { text, _installed: installed }
    }

    /// What was logged.
    pub fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The code that ends recovery mode, if the log has one.
    pub fn acceptance_code(&self) -> Option<String> {
        let text = self.text();
        let (_, code) = text.rsplit_once("--confirm ")?;
        Some(code.chars().take_while(char::is_ascii_hexdigit).collect())
    }
}

impl Subscriber for Writer {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        struct Line<'a>(&'a mut String);
        impl Visit for Line<'_> {
            fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                // A String takes whatever comes.
                let _ = writeln!(self.0, "{field}={value:?}");
            }
        }
        event.record(&mut Line(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner)));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}
