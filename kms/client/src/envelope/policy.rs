//! How long a data key may be kept, and for how much it may be used.

use std::time::Duration;

/// Bounds of the data keys in memory. Each message has a key of its own, derived from the data key, so the bounds on
/// messages and bytes are not needed against repeated nonces: they bound what one data key that leaks opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How long a data key is used after it was made or unwrapped. This is also how long this process goes on opening
    /// after the service would refuse to unwrap. Default 5 min; 0 asks the service each time.
    pub age_max: Duration,
    /// How many messages are sealed under one data key. Default 1,000; 0 is taken for 1.
    pub messages_max: u64,
    /// How many bytes are sealed under one data key. A message that is longer has one for itself; a stream counts
    /// while it is sealed, to its end or not, and so can exceed the bound by its own length. Default 1 GiB.
    pub bytes_max: u64,
    /// For how many key contexts a data key to seal with is kept. The one used longest ago gives way. Default 1,000; 0 keeps
    /// none.
    pub sealing_keys_max: usize,
    /// How many unwrapped data keys are kept to open with. The one used longest ago gives way. Default 1,000; 0 keeps none.
    pub opening_keys_max: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            age_max: Duration::from_secs(5 * 60),
            messages_max: 1_000,
            bytes_max: 1 << 30,
            sealing_keys_max: 1_000,
            opening_keys_max: 1_000,
        }
    }
}
