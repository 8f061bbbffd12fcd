//! How far a long command is: a bar, if there is a terminal to show it on.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Shows progress on standard error.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Begins to show what is being done, unless nobody wants to know or could see it.
    pub(crate) fn new(what: &'static str, wanted: bool) -> Self {
        // On what is no terminal, indicatif shows nothing.
        let bar = if wanted { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{msg}: {bar:40} {percent}% ({eta} left)");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what);
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// So much is done, of so much.
    pub(crate) fn set(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }

    /// So much is done of one of so many parts, counted from 0, which take as long each.
    pub(crate) fn set_part(&self, (part, parts): (u64, u64), (done, total): (u64, u64)) {
        let done = u128::from(done.min(total)) * 1000 / u128::from(total.max(1));
        self.set(part * 1000 + done as u64, parts * 1000);
    }

    /// All is done.
    pub(crate) fn finish(&self) {
        self.0.finish();
    }
}
