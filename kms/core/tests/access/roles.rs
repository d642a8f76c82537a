//! What each role has, and that nothing is allowed beside it.

use kms_core::policy;

use super::*;

/// Written down by hand, as the documentation says it: every action, and who has it.
const MATRIX: &[(&str, &[Action])] = &[
    (
        "administrator key-admin user raw-signer recoverer unsealer auditor approver",
        &[Action::GetKey, Action::GetPublicKey, Action::GetKeyUsage],
    ),
    (
        "administrator key-admin auditor approver",
        &[Action::ListKeys, Action::ListKeyClasses, Action::ListProposals],
    ),
    (
        "administrator user raw-signer recoverer unsealer",
        &[
            Action::WrapKey,
            Action::UnwrapKey,
            Action::RewrapKey,
            Action::GenerateDataKey,
            Action::GenerateDataKeyWithoutPlaintext,
            Action::Encrypt,
            Action::Decrypt,
            Action::ReportUsage,
        ],
    ),
    (
        "administrator user raw-signer recoverer",
        &[Action::Sign, Action::SignJwt, Action::SignKeySetBundle, Action::Verify],
    ),
    ("administrator raw-signer", &[Action::SignRaw]),
    ("administrator recoverer", &[Action::Recover]),
    (
        "administrator key-admin",
        &[
            Action::CreateKey,
            Action::UpdateKey,
            Action::UpdateKeyClass,
            Action::RotateKey,
            Action::EmergencyRotateKey,
            Action::RevokeKeyVersion,
            Action::DisableKeyVersion,
            Action::EnableKeyVersion,
            Action::DestroyKeyVersion,
            Action::RestoreKeyVersion,
            Action::RemoveConsumer,
        ],
    ),
    (
        "administrator auditor approver",
        &[Action::ListAccessTokens, Action::ListRoleBindings, Action::GetPolicy, Action::ExplainPolicy],
    ),
    ("administrator approver", &[Action::ApproveProposal]),
    ("administrator auditor", &[Action::GetInventory, Action::GetStatus]),
    (
        "administrator",
        &[
            Action::CreateAccessToken,
            Action::RevokeAccessToken,
            Action::CreateRoleBinding,
            Action::RevokeRoleBinding,
            Action::SetPolicy,
            Action::QuarantineObject,
            Action::AcceptOlderStore,
        ],
    ),
    // Every caller has these, whatever its role; administrators by their role, too.
    ("administrator", &[Action::RenewAccessToken, Action::GetCaller]),
    (
        "",
        &[
            Action::ResumeBirth,
            Action::CrossSignSuccessor,
            Action::ExecuteDestroy,
            Action::Canary,
            Action::FollowEpoch,
        ],
    ),
];

const FOR_EVERYBODY: [Action; 2] = [Action::RenewAccessToken, Action::GetCaller];
const FOR_SOME_KEYS_TOO: [Action; 3] = [Action::ListKeys, Action::ListKeyClasses, Action::ListProposals];

fn has(role: Role, action: Action) -> bool {
    let (roles, _) = MATRIX.iter().find(|(_, actions)| actions.contains(&action)).expect("in the matrix");
    roles.split_whitespace().any(|name| name == role.as_str())
}

#[test]
fn every_action_stands_in_the_matrix_once_and_the_roles_have_what_it_says() {
    for action in Action::ALL {
        let rows = MATRIX.iter().filter(|(_, actions)| actions.contains(&action)).count();
        assert_eq!(rows, 1, "{action}");
        for role in Role::ALL {
            assert_eq!(policy::role_has(role, action), has(role, action), "{role}: {action}");
        }
    }
}

#[test]
fn a_binding_gives_its_role_on_its_keys_and_on_the_service_only_with_every_key() {
    block_on(async {
        let (_world, kms) = a_world().await;
        for role in Role::ALL {
            for (scope, reaches) in [
                ("*", &["signs", "wraps", "roots", "absent"][..]),
                ("key:signs", &["signs"]),
                ("key:absent", &["absent"]),
                ("class:database", &["wraps"]),
                ("label:team=core", &["roots"]),
            ] {
                let who = format!("spiffe://example.org/{role}/{}", scope.replace(['*', ':', '='], "-"));
                let name = format!("{role}{}", scope.replace(['*', ':', '='], "-"));
                bind(&kms, &name, &who, role, scope).await;
                for action in Action::ALL {
                    if policy::is_about_a_key(action) || action == Action::ApproveProposal {
                        for key in ["signs", "wraps", "roots", "absent"] {
                            let expected = has(role, action) && reaches.contains(&key);
                            let (allowed, rules) = explained(&kms, &who, action, Some(key)).await;
                            assert_eq!(allowed, expected, "{role} on {scope}: {action} on {key}");
                            if allowed {
                                assert_eq!(rules, [format!("role-binding:{name}")]);
                            }
                        }
                    }
                    if !policy::is_about_a_key(action) {
                        let of_role =
                            has(role, action) && (scope == "*" || FOR_SOME_KEYS_TOO.contains(&action));
                        let expected = of_role || FOR_EVERYBODY.contains(&action);
                        assert_eq!(
                            allows(&kms, &who, action, None).await,
                            expected,
                            "{role} on {scope}: {action}"
                        );
                    }
                }
            }
        }
    });
}

#[test]
fn an_access_token_has_what_a_binding_of_its_role_would_give() {
    block_on(async {
        let (_world, kms) = a_world().await;
        for role in Role::ALL {
            for (keys, on, name) in [
                (KeyScope::All, "*", "all"),
                (KeyScope::Only([id("signs")].into()), "key:signs", "one"),
                (KeyScope::Only([].into()), "key:none", "none"),
            ] {
                let token = CreateAccessToken::new(format!("{role}-{name}"), OwnRole { role, keys });
                let made = kms.create_access_token(&administrator(), token).await;
                kms_core::fakes::with_consent(&kms, made).await.expect("made");
                let (token, bound) = (format!("access-token:{role}-{name}"), format!("dns:{role}-{name}"));
                bind(&kms, &format!("{role}-{name}"), &bound, role, on).await;
                for action in Action::ALL {
                    for key in [None, Some("signs"), Some("wraps"), Some("absent")] {
                        let [token, bound] = [
                            allows(&kms, &token, action, key).await,
                            allows(&kms, &bound, action, key).await,
                        ];
                        assert_eq!(token, bound, "{role} on {on}: {action} on {key:?}");
                    }
                }
            }
        }
    });
}

#[test]
fn whoever_has_no_rule_may_ask_who_it_is_and_nothing_else() {
    block_on(async {
        let (_world, kms) = a_world().await;
        for action in Action::ALL {
            for key in [None, Some("signs")] {
                let expected = key.is_none() && FOR_EVERYBODY.contains(&action);
                assert_eq!(
                    allows(&kms, "spiffe://example.org/nobody", action, key).await,
                    expected,
                    "{action}"
                );
            }
        }
        let view = kms.caller(&named("spiffe://example.org/nobody")).await.expect("told");
        assert_eq!((view.own_role, view.role_bindings.len()), (None, 0));
        let denied = kms.get_key(&named("spiffe://example.org/nobody"), &id("signs")).await;
        let absent = kms.get_key(&named("spiffe://example.org/nobody"), &id("absent")).await;
        assert_eq!(denied.map(drop), absent.map(drop), "absent and forbidden look alike");
    });
}
