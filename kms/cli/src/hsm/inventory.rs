//! `kms hsm inventory`: what the token holds, as the running server sees it.

use clap::{Args, ValueEnum};
use kms_client::v1::{self, hsm_object::State as WireState};

use crate::{
    connection::Connection,
    failure::Failure,
    output::{self, Format},
    view,
};

/// Objects asked for at once; the server's own limit.
const PAGE_SIZE: i32 = 1_000;

/// Compare what the token holds with what the service knows; changes nothing. Asks the running server
#[derive(Debug, Args)]
pub(super) struct Inventory {
    /// Only objects in this state
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<State>,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// The pair of a key version, as it must be
    Live,
    /// Of a key version that is still being made
    Resuming,
    /// Made by this service, or one like it, and named by no key version in its database; maybe somebody's live key
    Orphan,
    /// A key version whose pair is missing, not whole, or another one
    Dangling,
    /// A key version whose private key has other attributes than it was made with
    Deviating,
    /// Not made by this service
    Foreign,
    /// An orphan or foreign object that was put on record
    Quarantined,
}

impl Inventory {
    pub(super) async fn run(self, format: Format) -> Result<(), Failure> {
        let client = self.connection.client().await?;
        let state = self.state.map_or(WireState::Unspecified, State::on_the_wire);
        let mut request =
            v1::GetInventoryRequest { page_size: PAGE_SIZE, state: state.into(), ..Default::default() };
        let mut objects: Vec<view::HsmObject> = Vec::new();
        let counts = loop {
            let page = client.get_inventory(request.clone()).await?;
            objects.extend(page.objects.into_iter().map(Into::into));
            if page.next_page_token.is_empty() {
                break page.counts;
            }
            request.page_token = page.next_page_token;
        };
        let columns =
            ["cka_id", "state", "label", "key_version", "private_objects", "public_objects", "finding"];
        format.print_list(&objects, &columns)?;
        advise(&counts);
        Ok(())
    }
}

/// What an operator should know of states that ask for a decision.
fn advise(counts: &[v1::HsmObjectCount]) {
    for (state, advice) in [
        (
            WireState::Orphan,
            "named by no key version in this database; on a shared token, or after a restore, it may be somebody's \
             live key: delete none, and put each that is explained on record with `kms hsm quarantine`",
        ),
        (WireState::Dangling, "missing or not the one on record: restore the token, or rotate the key"),
        (WireState::Deviating, "not as it was made, and out of service: rotate the key"),
    ] {
        let count = counts.iter().find(|count| count.state() == state).map_or(0, |count| count.count);
        if count > 0 {
            output::note(&format!("{count} {}: {advice}", view::lower(state.as_str_name())));
        }
    }
}

impl State {
    fn on_the_wire(self) -> WireState {
        match self {
            Self::Live => WireState::Live,
            Self::Resuming => WireState::Resuming,
            Self::Orphan => WireState::Orphan,
            Self::Dangling => WireState::Dangling,
            Self::Deviating => WireState::Deviating,
            Self::Foreign => WireState::Foreign,
            Self::Quarantined => WireState::Quarantined,
        }
    }
}
