//! One method for each RPC. `kms.v1` documents what each does; here stands only what a repetition does to it.

use crate::{Client, Error, repeat::Repeat, v1};

/// Writes the methods: `repeatable` as they are, `remembered` by the server under a `request_id`, which they get
/// here when they have none, or sent only `once`.
macro_rules! calls {
    ($service:ident: $kind:ident { $($(#[$doc:meta])* $name:ident($request:ident) -> $response:ident;)* }) => {
        impl Client {
            $(
                $(#[$doc])*
                pub async fn $name(&self, request: v1::$request) -> Result<v1::$response, Error> {
                    let (repeat, request) = calls!(@$kind self, request);
                    self.call(repeat, request, |request| {
                        let mut service = self.$service();
                        async move { service.$name(request).await }
                    })
                    .await
                }
            )*
        }
    };
    (@repeatable $client:ident, $request:ident) => { (Repeat::Safe, $request) };
    (@once $client:ident, $request:ident) => { (Repeat::Never, $request) };
    (@remembered $client:ident, $request:ident) => {{
        let mut request = $request;
        if request.request_id.is_empty() {
            request.request_id = $client.request_id()?;
        }
        (Repeat::Safe, request)
    }};
}

calls!(keys: repeatable {
    /// Reads a key.
    get_key(GetKeyRequest) -> Key;
    /// Lists keys, one page at a time.
    list_keys(ListKeysRequest) -> ListKeysResponse;
    /// Lists the versions of a key, one page at a time.
    list_key_versions(ListKeyVersionsRequest) -> ListKeyVersionsResponse;
    /// Lists the classes of keys.
    list_key_classes(ListKeyClassesRequest) -> ListKeyClassesResponse;
    /// Reads a public key.
    get_public_key(GetPublicKeyRequest) -> PublicKey;
    /// Signs a key set.
    sign_key_set_bundle(SignKeySetBundleRequest) -> SignKeySetBundleResponse;
    /// Says how many envelopes a consumer holds under each version; a report is a whole, and replaces the last.
    report_usage(ReportUsageRequest) -> KeyUsage;
    /// Shows what still lives on which version.
    get_key_usage(GetKeyUsageRequest) -> KeyUsage;
    /// Says that a consumer is no more. Of a repetition after a lost answer, NOT_FOUND is the answer.
    remove_consumer(RemoveConsumerRequest) -> KeyUsage;
});

calls!(keys: remembered {
    /// Makes a key and its first version.
    create_key(CreateKeyRequest) -> Key;
    /// Changes owner, labels, class, periods or claim rules.
    update_key(UpdateKeyRequest) -> Key;
    /// Makes the next version.
    rotate_key(RotateKeyRequest) -> KeyVersion;
    /// Takes a version out of use.
    disable_key_version(DisableKeyVersionRequest) -> KeyVersion;
    /// Brings it back.
    enable_key_version(EnableKeyVersionRequest) -> KeyVersion;
    /// Declares it compromised, for good.
    revoke_key_version(RevokeKeyVersionRequest) -> RevokeKeyVersionResponse;
    /// Schedules its destruction.
    destroy_key_version(DestroyKeyVersionRequest) -> KeyVersion;
    /// Calls that off.
    restore_key_version(RestoreKeyVersionRequest) -> KeyVersion;
});

// A class that is changed to the same periods again is the same class, unless an etag says of which one it was asked.
calls!(keys: once {
    /// Changes the periods of a class.
    update_key_class(UpdateKeyClassRequest) -> KeyClass;
});

// Signing twice harms nothing: the first signature was lost with its answer.
calls!(crypto: repeatable {
    /// Signs a message or a digest.
    sign(SignRequest) -> SignResponse;
    /// Verifies a signature.
    verify(VerifyRequest) -> VerifyResponse;
    /// Makes a JSON Web Token.
    sign_jwt(SignJwtRequest) -> SignJwtResponse;
    /// Signs up to 128 inputs.
    batch_sign(BatchSignRequest) -> BatchSignResponse;
});

// Wrapping twice harms nothing either: nobody holds the first wrap, and the version's budget has room.
calls!(crypto: repeatable {
    /// Wraps a key.
    wrap_key(WrapKeyRequest) -> WrapKeyResponse;
    /// Unwraps a key.
    unwrap_key(UnwrapKeyRequest) -> UnwrapKeyResponse;
    /// Moves a wrapped key to the version that wraps now.
    rewrap_key(RewrapKeyRequest) -> RewrapKeyResponse;
    /// Makes a data key, and gives it bare and wrapped.
    generate_data_key(GenerateDataKeyRequest) -> GenerateDataKeyResponse;
    /// Makes a data key, and gives it wrapped only.
    generate_data_key_without_plaintext(GenerateDataKeyRequest) -> GenerateDataKeyWithoutPlaintextResponse;
    /// Encrypts a small payload into an envelope. [`envelope`](crate::envelope) does it here, for any size.
    encrypt(EncryptRequest) -> EncryptResponse;
    /// Opens an envelope with a small payload.
    decrypt(DecryptRequest) -> DecryptResponse;
    /// Moves an envelope to the version that wraps now.
    re_encrypt(ReEncryptRequest) -> ReEncryptResponse;
    /// Wraps up to 128 keys.
    batch_wrap_key(BatchWrapKeyRequest) -> BatchWrapKeyResponse;
    /// Unwraps up to 128 keys.
    batch_unwrap_key(BatchUnwrapKeyRequest) -> BatchUnwrapKeyResponse;
    /// Moves up to 128 wrapped keys.
    batch_rewrap_key(BatchRewrapKeyRequest) -> BatchRewrapKeyResponse;
    /// Makes up to 128 data keys.
    batch_generate_data_key(BatchGenerateDataKeyRequest) -> BatchGenerateDataKeyResponse;
    /// Makes up to 128 data keys, and gives them wrapped only.
    batch_generate_data_key_without_plaintext(BatchGenerateDataKeyRequest)
        -> BatchGenerateDataKeyWithoutPlaintextResponse;
    /// Encrypts up to 128 small payloads.
    batch_encrypt(BatchEncryptRequest) -> BatchEncryptResponse;
    /// Opens up to 128 envelopes.
    batch_decrypt(BatchDecryptRequest) -> BatchDecryptResponse;
    /// Moves up to 128 envelopes.
    batch_re_encrypt(BatchReEncryptRequest) -> BatchReEncryptResponse;
});

calls!(access: once {
    /// Makes an access token. Never repeated: the credential of a lost answer cannot be shown again.
    create_access_token(CreateAccessTokenRequest) -> CreateAccessTokenResponse;
    /// Gives a role to a caller. Never repeated: of a repetition after a lost answer, ALREADY_EXISTS would be the answer.
    create_role_binding(CreateRoleBindingRequest) -> RoleBinding;
});

calls!(access: repeatable {
    /// Lists access tokens, one page at a time.
    list_access_tokens(ListAccessTokensRequest) -> ListAccessTokensResponse;
    /// Revokes an access token; doing it again changes nothing.
    revoke_access_token(RevokeAccessTokenRequest) -> AccessToken;
    /// Moves the end of the access token that this client shows; twice moves it as far as once.
    renew_access_token(RenewAccessTokenRequest) -> AccessToken;
    /// Says who the caller is, and which roles it has.
    get_caller(GetCallerRequest) -> GetCallerResponse;
    /// Lists role bindings, one page at a time.
    list_role_bindings(ListRoleBindingsRequest) -> ListRoleBindingsResponse;
    /// Takes a role away; doing it again changes nothing.
    revoke_role_binding(RevokeRoleBindingRequest) -> RoleBinding;
});

calls!(policy: repeatable {
    /// Reads the policy document.
    get_policy(GetPolicyRequest) -> Policy;
    /// Lists its versions, one page at a time.
    list_policies(ListPoliciesRequest) -> ListPoliciesResponse;
    /// Asks what policy would say, and why.
    explain_policy(ExplainPolicyRequest) -> ExplainPolicyResponse;
});

calls!(policy: once {
    /// Puts a new document in the place of the one that holds. Never repeated: twice would be two versions.
    set_policy(SetPolicyRequest) -> Policy;
});

calls!(approvals: repeatable {
    /// Lists proposals, one page at a time.
    list_proposals(ListProposalsRequest) -> ListProposalsResponse;
    /// Reads a proposal.
    get_proposal(GetProposalRequest) -> Proposal;
    /// Approves one; doing it again changes nothing.
    approve_proposal(ApproveProposalRequest) -> Proposal;
});

calls!(approvals: once {
    /// Rejects a proposal. Never repeated: a rejected one is closed.
    reject_proposal(RejectProposalRequest) -> Proposal;
    /// Does what was proposed, once. After a lost answer, look at the proposal.
    execute_proposal(ExecuteProposalRequest) -> ExecuteProposalResponse;
});

calls!(hsm: once {
    /// Accepts a database that is older than the HSM has seen. Never repeated: after a lost answer, look first.
    accept_older_store(AcceptOlderStoreRequest) -> AcceptOlderStoreResponse;
});

calls!(status: repeatable {
    /// Shows every replica, and what is wrong with it.
    get_status(GetStatusRequest) -> Status;
});

calls!(hsm: repeatable {
    /// Compares what the HSM's token holds with what the service knows, one page at a time.
    get_inventory(GetInventoryRequest) -> GetInventoryResponse;
    /// Puts an orphan or foreign object on record; doing it again changes nothing.
    quarantine_object(QuarantineObjectRequest) -> HsmObject;
});
