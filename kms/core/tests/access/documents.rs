//! The policy document: validated, versioned, and unable to make an administrator or to lock all of them out.

use kms_core::verbs::SetPolicy;

use super::*;

const APP: &str = "spiffe://example.org/app";

fn document(text: &str) -> SetPolicy {
    SetPolicy { text: text.to_owned(), note: "a test".to_owned(), expected: None, allow_empty: false }
}

async fn set(kms: &FakeKms, text: &str) -> Result<(), Error> {
    kms.set_policy(&administrator(), document(text)).await.map(drop)
}

#[test]
fn a_document_allows_and_forbids_beside_the_bindings() {
    block_on(async {
        let (_world, kms) = a_world().await;
        bind(&kms, "app", APP, Role::User, "key:signs").await;
        let text = r#"
            @id("mesh-verifies")
            permit(
                principal in Kms::Origin::"spiffe://example.org",
                action in [Kms::Action::"verify", Kms::Action::"get_public_key"],
                resource in Kms::Class::"root"
            );
            @id("data-is-closed")
            forbid(principal, action, resource is Kms::Key)
            when { resource.hasTag("team") && resource.getTag("team") == "data" && resource.owner == "data@example.org" };
        "#;
        set(&kms, text).await.expect("set");
        let told = async |action, key| explained(&kms, APP, action, Some(key)).await;
        assert_eq!(told(Action::Verify, "roots").await, (true, vec!["policy:mesh-verifies".to_owned()]));
        assert_eq!(told(Action::Sign, "roots").await, (false, vec![]));
        assert_eq!(told(Action::Sign, "signs").await, (true, vec!["role-binding:app".to_owned()]));
        assert!(!allows(&kms, "spiffe://example.com/app", Action::Verify, Some("roots")).await);
        let admin = administrator();
        assert_eq!(reason(kms.get_key(&admin, &id("wraps")).await), Err("PERMISSION_DENIED"), "for all");
        assert_eq!(
            reason(kms.get_key(&admin, &id("absent")).await),
            Err("NOT_FOUND"),
            "a key that is not there has no team"
        );
        // What a stranger is told says nothing; the record names the rule.
        let events = _world.log.events();
        let denial = events.iter().rfind(|event| event.key == Some(id("wraps"))).expect("a record");
        assert_eq!(denial.reason.as_deref(), Some("policy:data-is-closed"));
    });
}

#[test]
fn a_document_that_reads_the_context_decides_each_time_anew() {
    block_on(async {
        use kms_core::verbs::GenerateDataKey;
        let (_world, kms) = a_world().await;
        let text = r#"permit(principal == Kms::Caller::"unix:1", action == Kms::Action::"generate_data_key", resource)
            when { context.encryption_context.hasTag("tenant") && context.encryption_context.getTag("tenant") == "a" };"#;
        set(&kms, text).await.expect("set");
        for (tenant, expected) in [("a", Ok(())), ("b", Err("PERMISSION_DENIED")), ("a", Ok(()))] {
            let context = kms_envelope::EncryptionContext::new([("tenant".to_owned(), tenant.to_owned())]);
            let context = context.expect("a context");
            let data_key = GenerateDataKey { id: id("wraps"), len: 32, context, with_plaintext: true };
            let outcome = kms.generate_data_key(&named("unix:1"), data_key, soon()).await;
            assert_eq!(reason(outcome), expected.map_err(|_: &str| "PERMISSION_DENIED"), "{tenant}");
        }
    });
}

#[test]
fn a_document_gives_no_rights_on_the_service_and_no_approvals() {
    block_on(async {
        let (_world, kms) = a_world().await;
        set(&kms, "permit(principal, action, resource);").await.expect("set");
        for action in Action::ALL {
            for key in [None, Some("signs")] {
                let everybodys =
                    matches!(action, Action::RenewAccessToken | Action::GetCaller) && key.is_none();
                let on_key = kms_core::policy::is_about_a_key(action) && key.is_some();
                let allowed = allows(&kms, "unix:1", action, key).await;
                assert_eq!(allowed, everybodys || on_key, "{action} on {key:?}");
            }
        }
    });
}

#[test]
fn what_does_not_validate_is_refused_with_its_place_or_reason_and_changes_nothing() {
    block_on(async {
        let (_world, kms) = a_world().await;
        for (text, told) in [
            ("permit(principal, action, resource)", "line 1"),
            ("\n  permit(principal, action, resource) when { resource.color == 1 };", "color"),
            (r#"permit(principal == Kms::Caller::"a", action == Kms::Action::"fly", resource);"#, "fly"),
            (r#"permit(principal == Kms::User::"a", action, resource);"#, "User"),
            ("permit(principal == ?principal, action, resource);", "template"),
            (r#"@id("a b") permit(principal, action, resource);"#, "@id"),
            (
                r#"@id("a") permit(principal, action, resource); @id("a") forbid(principal, action, resource);"#,
                "@id",
            ),
            (
                r#"permit(principal, action, resource is Kms::Key) when { resource.getTag("team") == "a" };"#,
                "tag",
            ),
            ("", "allow_empty"),
            ("// nothing\n", "allow_empty"),
        ] {
            let refused = set(&kms, text).await.expect_err(text);
            assert_eq!(
                (refused.reason(), refused.field()),
                ("INVALID_ARGUMENT", Some("policy.text")),
                "{text}"
            );
            assert!(refused.to_string().contains(told), "{text}: {refused}");
        }
        let many = "permit(principal, action, resource);\n".repeat(257);
        assert!(set(&kms, &many).await.expect_err("many").to_string().contains("256"));
        let long = format!("// {}", "x".repeat(64 * 1024));
        assert!(set(&kms, &long).await.expect_err("long").to_string().contains("64 KiB"));
        let second_line =
            set(&kms, "permit(principal, action, resource);\n  permit(;").await.expect_err("parses not");
        assert!(second_line.to_string().contains("line 2, column 10"), "{second_line}");
        let odd_note =
            SetPolicy { note: "a\nb".to_owned(), ..document("permit(principal, action, resource);") };
        let refused = kms.set_policy(&administrator(), odd_note).await.expect_err("a note");
        assert_eq!(refused.field(), Some("policy.note"));
        assert_eq!(kms.policy(&administrator(), None).await.expect("none").version, 0);
    });
}

#[test]
fn a_document_that_would_lock_every_administrator_out_is_refused() {
    block_on(async {
        let (_world, kms) = a_world().await;
        let closed = r#"forbid(principal, action == Kms::Action::"set_policy", resource);"#;
        assert_eq!(reason(set(&kms, closed).await), Err("LOCKOUT"), "the caller itself");
        bind(&kms, "alice", "spiffe://example.org/alice", Role::Administrator, "*").await;
        for text in [
            "forbid(principal, action, resource);",
            closed,
            r#"forbid(principal == Kms::Caller::"spiffe://example.org/alice", action, resource);"#,
            r#"forbid(principal, action == Kms::Action::"create_role_binding", resource);"#,
            r#"forbid(principal in Kms::Origin::"spiffe://example.org", action in
                [Kms::Action::"create_access_token", Kms::Action::"sign"], resource);"#,
        ] {
            assert_eq!(reason(set(&kms, text).await), Err("LOCKOUT"), "{text}");
        }
        let others = r#"forbid(principal, action, resource) unless { principal == Kms::Caller::"spiffe://example.org/alice" };"#;
        assert_eq!(
            reason(set(&kms, others).await),
            Err("LOCKOUT"),
            "one that is made on the host could not help"
        );
        let admin_is_out = r#"forbid(principal == Kms::Caller::"access-token:admin", action, resource);"#;
        assert_eq!(reason(set(&kms, admin_is_out).await), Ok(()), "somebody remains");
        assert_eq!(reason(set(&kms, admin_is_out).await), Err("PERMISSION_DENIED"), "and this one is out");
        let alice = named("spiffe://example.org/alice");
        let open = SetPolicy { allow_empty: true, ..document("") };
        kms.set_policy(&alice, open).await.expect("alice opens again");
        assert_eq!(reason(set(&kms, admin_is_out).await), Ok(()));
    });
}

#[test]
fn four_eyes_cannot_be_closed_by_a_document_either() {
    block_on(async {
        let (_world, kms) = a_world().await;
        make_administrators(&kms).await;
        let no_approvals = r#"forbid(principal, action == Kms::Action::"approve_proposal", resource);"#;
        assert_eq!(reason(set(&kms, no_approvals).await), Err("LOCKOUT"));
        let one_left = r#"forbid(principal == Kms::Caller::"access-token:second", action == Kms::Action::"approve_proposal", resource);"#;
        assert_eq!(reason(set(&kms, one_left).await), Err("LOCKOUT"));
    });
}

#[test]
fn versions_are_kept_and_a_stale_change_is_refused() {
    block_on(async {
        let (world, kms) = a_world().await;
        let texts = [
            "permit(principal, action == Kms::Action::\"verify\", resource);",
            "forbid(principal, action == Kms::Action::\"sign\", resource);",
        ];
        for text in texts {
            set(&kms, text).await.expect("set");
        }
        let stale = SetPolicy { expected: Some(1), ..document(texts[0]) };
        assert_eq!(reason(kms.set_policy(&administrator(), stale).await), Err("ETAG_MISMATCH"));
        let versions = kms.list_policies(&administrator()).await.expect("listed");
        assert_eq!(versions.iter().map(|document| document.version).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(kms.policy(&administrator(), Some(1)).await.expect("read").text, texts[0]);
        assert_eq!(reason(kms.policy(&administrator(), Some(3)).await), Err("NOT_FOUND"));
        drop(kms);
        let kms = world.open(Settings::default()).await.expect("opens with its document");
        assert!(
            !allows(&kms, "access-token:admin", Action::Sign, Some("signs")).await,
            "it holds after a restart"
        );
    });
}

#[test]
fn a_candidate_is_tried_without_being_set() {
    block_on(async {
        let (_world, kms) = a_world().await;
        let question = Question {
            caller: "unix:1".to_owned(),
            action: Action::Verify,
            key: Some(id("signs")),
            context: BTreeMap::new(),
        };
        let text = r#"@id("try") permit(principal, action == Kms::Action::"verify", resource);"#;
        let ask = async |candidate: Option<&str>| {
            let questions = vec![question.clone()];
            let told = kms.explain_policy(&administrator(), questions, candidate.map(str::to_owned)).await;
            told.map(|told| (told[0].allowed, told[0].rules.clone()))
        };
        assert_eq!(ask(Some(text)).await, Ok((true, vec!["policy:try".to_owned()])));
        assert_eq!(ask(None).await, Ok((false, vec![])));
        assert_eq!(ask(Some("permit(")).await.map_err(|error| error.field()), Err(Some("policy.text")));
        let odd = Question { caller: "UNIX:1".to_owned(), ..question.clone() };
        let told = kms.explain_policy(&administrator(), vec![odd], None).await.expect("told");
        assert!(!told[0].allowed && told[0].reason.contains("canonical"), "{told:?}");
        assert_eq!(reason(kms.explain_policy(&administrator(), vec![], None).await), Err("INVALID_ARGUMENT"));
    });
}

#[test]
fn the_reference_shows_the_schema_as_it_is() {
    let page = include_str!("../../../../docs/reference/policy.md");
    assert!(page.contains(kms_core::policy::SCHEMA), "docs/reference/policy.md holds another schema");
}
