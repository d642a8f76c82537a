//! `kms access`, `kms policy` and `kms approvals`: from the first grant to four eyes, at the command line.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::{Context as _, ensure};
use kms_tests::{Desk, Environment, Plan, refused};

const CI: &str = "spiffe://example.org/ci";

#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_given_seen_explained_and_taken_away() -> anyhow::Result<()> {
    let desk = Desk::new().await?;
    let who = desk.json("access whoami")?;
    ensure!(who["caller"] == "access-token:first-administrator" && who["role"] == "administrator", "{who}");

    let grant =
        format!("access grant user --to {CI} --on key:files --only encrypt --context tenant=a --for 1d");
    let made = desk.json(&grant)?;
    let name = made["name"].as_str().context("a name")?;
    let digits = name.strip_prefix("roleBindings/user-").context("role and digits")?;
    ensure!(digits.len() == 8 && digits.bytes().all(|c| c.is_ascii_hexdigit()), "{name}");
    let other = desk.json(&grant)?;
    ensure!(other["name"] != made["name"], "a second grant has a name of its own");
    let listed = desk.run("access list")?;
    ensure!(listed.text()?.lines().count() == 3 && listed.stdout.contains("key:files"), "{listed:?}");

    let explain = format!("policy explain {CI} encrypt files --context");
    let said = desk.json(&format!("{explain} tenant=a"))?;
    ensure!(said["allowed"] == true && said["rules"].as_array().is_some_and(|all| all.len() == 2), "{said}");
    let said = desk.json(&format!("{explain} tenant=b"))?;
    ensure!(said["allowed"] == false, "{said}");

    for name in [name, other["name"].as_str().context("a name")?] {
        desk.run(&format!("access revoke {name}"))?.text()?;
    }
    let said = desk.json(&format!("{explain} tenant=a"))?;
    ensure!(said["allowed"] == false && said["reason"] == "no rule allows it", "{said}");
    let absent = desk.run("access revoke absent")?;
    ensure!(absent.code == Some(3), "{absent:?}");
    let last = desk.run("access-token revoke first-administrator")?;
    ensure!(last.code == Some(5), "{last:?}");
    refused(&last, &["make another administrator first"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_tried_by_examples_before_it_holds() -> anyhow::Result<()> {
    const POLICY: &str = "@id(\"ci\")\npermit (principal == Kms::Caller::\"spiffe://example.org/ci\", \
                          action == Kms::Action::\"sign_jwt\", resource);\n";
    const EXAMPLES: &str = "[[examples]]\ncaller = \"spiffe://example.org/ci\"\naction = \"sign_jwt\"\n\
                            key = \"web\"\nexpect = \"allow\"\n\n[[examples]]\ncaller = \"unix:1\"\n\
                            action = \"sign_jwt\"\nkey = \"web\"\nexpect = \"deny\"\n";
    let desk = Desk::new().await?;
    let schema = Environment { addr: String::new(), ..(*desk.service).clone() };
    let schema = desk.run_as(&schema, "policy schema", b"")?;
    ensure!(schema.text()?.contains("namespace Kms"), "{schema:?}");

    desk.write("policy.cedar", POLICY)?;
    desk.write("examples.toml", EXAMPLES)?;
    let before = desk.run("policy test examples.toml")?;
    ensure!(before.code == Some(1), "{before:?}");
    refused(&before, &["example 1:", "policy denies it: no rule allows it", "1 of 2"])?;
    let tried = desk.run("policy test examples.toml --document policy.cedar")?;
    ensure!(tried.text()?.contains("policy:ci"), "{tried:?}");
    let piped = desk.pipe("policy test examples.toml --document -", POLICY.as_bytes())?;
    piped.text()?;

    desk.write("broken.cedar", format!("{POLICY}permit (principal, action resource);\n"))?;
    let broken = desk.run("policy set broken.cedar --note typo")?;
    ensure!(broken.code == Some(2), "{broken:?}");
    refused(&broken, &["line 3, column"])?;
    desk.run("policy set policy.cedar --note first --expected 0")?.text()?;
    desk.run("policy test examples.toml")?.text()?;
    ensure!(desk.run("policy get")?.stdout == POLICY, "it is printed as it was set");
    let stale = desk.run("policy set policy.cedar --note again --expected 0")?;
    ensure!(stale.code == Some(5), "{stale:?}");
    let versions = desk.json("policy versions")?;
    ensure!(versions[0]["name"] == "policies/1" && versions[0]["note"] == "first", "{versions}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_four_eyes_is_shown_approved_and_executed_once() -> anyhow::Result<()> {
    let desk = Desk::new().await?;
    // With the administrator there are then two who may approve.
    desk.run("access-token create anne --role approver --all-keys --out anne")?.text()?;
    let anne = desk.service.with_token_file(desk.path("anne"));

    let asked = desk.run("access-token create carl --role administrator --all-keys --out carl")?;
    ensure!(asked.code == Some(5) && !desk.path("carl").exists(), "{asked:?}");
    let open = desk.json("approvals list --open")?;
    let name = open[0]["name"].as_str().context("a proposal")?;
    let id = name.strip_prefix("proposals/").context("a name")?;
    // Whoever asks is told by the error itself how it goes on.
    refused(&asked, &[name, &format!("kms approvals execute {id}")])?;
    let hash = open[0]["change_sha256"].as_str().context("a hash")?;
    let shown = desk.run_as(&anne, &format!("approvals show {id}"), b"")?;
    ensure!(shown.text()?.contains("\"name\": \"carl\"") && shown.stdout.contains(hash), "{shown:?}");
    ensure!(shown.stdout.contains("access-token:first-administrator"), "{shown:?}");

    let unasked = desk.run_as(&anne, &format!("approvals approve {id}"), b"approve\n")?;
    ensure!(unasked.code == Some(2), "{unasked:?}");
    refused(&unasked, &["nobody at a terminal", "--yes"])?;
    let own = desk.run(&format!("approvals approve {id} --yes"))?;
    ensure!(own.code == Some(5), "{own:?}");
    let early = desk.run(&format!("approvals execute {id} --out carl"))?;
    ensure!(early.code == Some(5) && !desk.path("carl").exists(), "{early:?}");
    let approved = desk.run_as(&anne, &format!("approvals approve {id} --yes --note seen"), b"")?;
    ensure!(approved.text()?.contains("approved") && approved.stderr.contains(hash), "{approved:?}");

    desk.run(&format!("approvals execute {name} --out carl"))?.text()?;
    ensure!(fs::metadata(desk.path("carl"))?.permissions().mode() & 0o777 == 0o600);
    let carl = desk.service.with_token_file(desk.path("carl"));
    let who = desk.run_as(&carl, "access whoami -o json", b"")?.json()?;
    ensure!(who["caller"] == "access-token:carl", "{who}");
    let again = desk.run(&format!("approvals execute {id}"))?;
    ensure!(again.code == Some(5), "{again:?}");

    // Nor does one alone take the rule away.
    refused(&desk.run("keys class-update jwt-signing --approvals 0")?, &["kms approvals execute"])?;
    let open = desk.json("approvals list --open")?;
    let id = open[0]["name"].as_str().context("a proposal")?;
    desk.run_as(&anne, &format!("approvals reject {id} --note no"), b"")?.text()?;
    let rejected = desk.run(&format!("approvals execute {id}"))?;
    ensure!(rejected.code == Some(5), "{rejected:?}");
    ensure!(desk.json("approvals list --open")? == serde_json::json!([]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_without_a_role_has_what_is_granted_to_its_name_and_is_renewed() -> anyhow::Result<()> {
    let desk = Desk::new().await?;
    desk.run("access-token create ci --period 1h --renewable-for 30d --out ci")?.text()?;
    let ci = desk.service.with_token_file(desk.path("ci"));
    let denied = desk.run_as(&ci, "keys get files", b"")?;
    ensure!(denied.code == Some(4), "{denied:?}");
    desk.run("access grant user --to access-token:ci --on key:files --name ci")?.text()?;
    desk.run_as(&ci, "keys get files", b"")?.text()?;
    let renewed = desk.run_as(&ci, "access-token renew -o json", b"")?.json()?;
    ensure!(renewed["name"] == "accessTokens/ci" && renewed["period"] == "1h", "{renewed}");
    let who = desk.run_as(&ci, "access whoami", b"")?;
    ensure!(who.text()?.contains("roleBindings/ci"), "{who:?}");
    desk.run("access revoke ci")?.text()?;
    let denied = desk.run_as(&ci, "keys get files", b"")?;
    ensure!(denied.code == Some(4), "{denied:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_administrator_is_made_on_the_host_while_the_server_does_not_run() -> anyhow::Result<()> {
    let plan = Plan::new()?;
    plan.bootstrap().await?;
    let again = plan.run(&["bootstrap"]).await?;
    refused(&again, &["--another NAME"])?;
    let another = plan.run(&["bootstrap", "--another", "second"]).await?;
    ensure!(another.text()?.starts_with("kms_"), "{another:?}");
    let taken = plan.run(&["bootstrap", "--another", "second"]).await?;
    ensure!(taken.code == Some(5), "{taken:?}");
    refused(&taken, &["second"])
}
