//! `kms keys classes` and `class-update`: the periods that keys of one kind share, and how many must approve.

use clap::Args;
use kms_client::{Client, v1};
use prost_types::FieldMask;

use super::periods::{Period, Periods};
use crate::{failure::Failure, output::Format, view};

/// List the classes of keys, with the periods that their keys have from them
#[derive(Debug, Args)]
pub(super) struct Classes {}

/// Change the periods of a class, and of all keys that have them from it; or how many must approve what takes protection
/// from them
#[derive(Debug, Args)]
pub(super) struct ClassUpdate {
    /// root, jwt-signing, database, api, session or development
    class: String,
    #[command(flatten)]
    periods: Periods,
    /// Go back to what is built in; may be repeated
    #[arg(long, value_name = "PERIOD")]
    reset: Vec<Period>,
    /// How many others must approve what takes protection from its keys: 0 to 8. What is about the service as a whole goes
    /// by the class root
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..=8))]
    approvals: Option<i32>,
    /// Only if the class still has this etag
    #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
    etag: String,
}

impl Classes {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let answer = client.list_key_classes(v1::ListKeyClassesRequest {}).await?;
        let classes: Vec<_> = answer.key_classes.into_iter().map(view::KeyClass::from).collect();
        let columns = [
            "name",
            "rotation_period",
            "publish_lead",
            "max_token_ttl",
            "overlap",
            "destroy_after",
            "approvals",
            "update_time",
        ];
        format.print_list(&classes, &columns)
    }
}

impl ClassUpdate {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let mut paths = self.periods.paths(&self.reset);
        paths.extend(self.approvals.map(|_| "approvals".to_owned()));
        if paths.is_empty() {
            return Err(Failure::usage(
                "nothing is to be changed; name a period, --reset one, or say --approvals",
            ));
        }
        let periods = self.periods;
        let class = v1::KeyClass {
            name: format!("keyClasses/{}", self.class.strip_prefix("keyClasses/").unwrap_or(&self.class)),
            rotation_period: periods.of(Period::Rotation),
            publish_lead: periods.of(Period::PublishLead),
            max_token_ttl: periods.of(Period::MaxTokenTtl),
            overlap: periods.of(Period::Overlap),
            destroy_after: periods.of(Period::DestroyAfter),
            approvals: self.approvals,
            etag: self.etag,
            ..Default::default()
        };
        let request =
            v1::UpdateKeyClassRequest { key_class: Some(class), update_mask: Some(FieldMask { paths }) };
        format.print_one(&view::KeyClass::from(client.update_key_class(request).await?))
    }
}
