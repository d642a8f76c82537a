//! How far a long command is: a bar on standard error while people watch it, and nothing where it goes to a file or a
//! pipe, which get lines from those who have something to say there.

use std::borrow::Cow;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;

/// The step, the bar, and how much of it all. `{wide_bar}` takes what is left of the line.
const OF_COUNTS: &str = "{msg:<9} [{wide_bar}] {percent:>3} % of {len} {prefix} (ready in {eta})";
const OF_BYTES: &str = "{msg:<9} [{wide_bar}] {bytes} of {total_bytes} ({bytes_per_sec}, ready in {eta})";
/// Full, and empty.
const CELLS: &str = "#.";

/// A bar. It goes away with this value, and what is printed next begins a line of its own.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// A bar that counts things, named in the plural: `rows`.
    pub(crate) fn of_counts(things: &'static str) -> Self {
        Self::new(OF_COUNTS, things)
    }

    /// A bar that counts bytes, and shows them in the unit that fits.
    pub(crate) fn of_bytes() -> Self {
        Self::new(OF_BYTES, "")
    }

    /// Shows that of `of`, which may change, `done` are done. A new `step` has a rate of its own.
    pub(crate) fn show(&self, step: impl Into<Cow<'static, str>>, done: u64, of: u64) {
        let step = step.into();
        if self.0.message() != *step {
            self.0.set_message(step);
            self.0.reset();
        }
        self.0.set_length(of);
        self.0.set_position(done);
    }

    /// Tells the person at the terminal something, above the bar.
    pub(crate) fn say(&self, text: &str) {
        self.0.suspend(|| output::note(text));
    }

    fn new(template: &str, things: &'static str) -> Self {
        let target = match output::watched() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(None, target).with_prefix(things);
        // A template that is wrong is replaced by indicatif's own; a test looks at ours.
        bar.set_style(style(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(bar)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // The last state stays to be read, unless nothing was ever shown.
        match self.0.length() {
            Some(_) => self.0.abandon(),
            None => self.0.finish_and_clear(),
        }
    }
}

fn style(template: &str) -> Result<ProgressStyle, indicatif::style::TemplateError> {
    Ok(ProgressStyle::with_template(template)?.progress_chars(CELLS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_templates_are_understood() {
        for template in [OF_COUNTS, OF_BYTES] {
            style(template).expect("a template");
        }
    }

    #[test]
    fn a_bar_follows_its_step_its_length_and_what_is_done() {
        let bar = Bar::of_counts("rows");
        for (step, done, of) in [("copying", 0, 0), ("copying", 5, 10), ("verifying", 1, 12)] {
            bar.show(step, done, of);
            let shown = (bar.0.message(), bar.0.position(), bar.0.length());
            assert_eq!(shown, (step.to_owned(), done, Some(of)));
        }
    }
}
