//! The rules of one picture, compiled for whoever asks.
//!
//! Cedar looks at every policy of a set, about half a microsecond each, and most bindings are somebody else's. So each caller has a
//! set of its own, made when it first asks: its bindings, its own role, and the document. What was allowed there is remembered by
//! key and revision, where the encryption context has no say in it; a change of bindings or document drops all of it.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::{
        Arc, LazyLock, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use cedar_policy::{
    Authorizer, Context, Decision as Verdict, Entities, Entity, EntityId, EntityTypeName, EntityUid, Policy,
    PolicyId, PolicySet, Request, RestrictedExpression,
};
use kms_envelope::EncryptionContext;

use super::{
    About, Ask, Decision, Traits,
    compile::{self, SERVICE},
    document::Document,
    role::{has_context, is_about_a_key, is_ours_alone},
};
use crate::{
    Action, Caller, Error, KeyId,
    access::RoleBinding,
    caller::OwnRole,
    lane::Lane,
    principal::{Principal, Source},
    time::Timestamp,
};

/// Most callers whose sets are kept, and most keys of each whose decisions are.
const CALLERS_KEPT_MAX: usize = 4096;
const KEYS_KEPT_MAX: usize = 4096;

/// Bindings and document of one picture.
pub(crate) struct Rules {
    bindings: HashMap<Arc<str>, Vec<Arc<RoleBinding>>>,
    document: Arc<Document>,
    callers: Mutex<HashMap<Arc<str>, Arc<Compiled>>>,
}

/// What holds for one caller, for some time.
pub(super) struct Compiled {
    own: Option<OwnRole>,
    uid: EntityUid,
    entity: Entity,
    /// About keys.
    on_keys: PolicySet,
    /// About the service, and approvals: of the document only what forbids.
    by_roles: PolicySet,
    /// Bindings of unsealers.
    unsealers: HashSet<PolicyId>,
    reads_context: bool,
    /// When a binding begins or ends.
    from: Timestamp,
    until: Timestamp,
    allowed: RwLock<HashMap<KeyId, Allowed>>,
    /// What was allowed on the service: a bit for each action.
    allowed_on_service: AtomicU64,
}

/// What was allowed on one key, as it is at a revision: a bit for each action.
#[derive(Clone, Copy)]
struct Allowed {
    revision: u64,
    actions: u64,
    by_unsealers: u64,
}

/// What Cedar says.
pub(super) struct Said {
    pub(super) allowed: bool,
    /// The policies that decided, sorted.
    pub(super) by: Vec<PolicyId>,
    /// What could not be evaluated, which denies.
    pub(super) errors: Vec<String>,
}

impl Rules {
    /// The rules of these bindings and this document.
    pub(crate) fn new(bindings: &[Arc<RoleBinding>], document: Arc<Document>) -> Self {
        let mut by_principal: HashMap<_, Vec<_>> = HashMap::new();
        for binding in bindings.iter().filter(|binding| binding.revoked_at.is_none()) {
            by_principal.entry(binding.principal.shared()).or_default().push(Arc::clone(binding));
        }
        Self { bindings: by_principal, document, callers: Mutex::default() }
    }

    /// The same bindings with another document.
    pub(super) fn with(&self, document: Arc<Document>) -> Self {
        Self { bindings: self.bindings.clone(), document, callers: Mutex::default() }
    }

    pub(super) fn of(&self, caller: &str) -> &[Arc<RoleBinding>] {
        self.bindings.get(caller).map_or(&[], Vec::as_slice)
    }

    pub(super) fn compiled(&self, caller: &Caller, now: Timestamp) -> Result<Arc<Compiled>, Error> {
        let fits = |compiled: &Arc<Compiled>| {
            compiled.from <= now && now < compiled.until && compiled.own.as_ref() == caller.own_role()
        };
        {
            let callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(compiled) = callers.get(caller.name()).filter(|compiled| fits(compiled)) {
                return Ok(Arc::clone(compiled));
            }
        }
        let compiled = Arc::new(Compiled::new(caller, self.of(caller.name()), &self.document, now)?);
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if callers.len() >= CALLERS_KEPT_MAX {
            callers.clear();
        }
        callers.insert(caller.shared_name(), Arc::clone(&compiled));
        Ok(compiled)
    }
}

impl Compiled {
    fn new(
        caller: &Caller,
        bindings: &[Arc<RoleBinding>],
        document: &Document,
        now: Timestamp,
    ) -> Result<Self, Error> {
        let (mut from, mut until) = (Timestamp::MIN, Timestamp::MAX);
        let (mut roles, mut unsealers) = (vec![compile::everybodys()?], HashSet::new());
        let mut reads_context = document.reads_context;
        for binding in bindings {
            for edge in [binding.not_before, binding.expires_at].into_iter().flatten() {
                match edge <= now {
                    true => from = from.max(edge),
                    false => until = until.min(edge),
                }
            }
            if !binding.holds(now) {
                continue;
            }
            let policies = compile::binding(binding)?;
            if compile::is_unsealer(binding.role) {
                unsealers.extend(policies.iter().map(|policy| policy.id().clone()));
            }
            reads_context |= !binding.required_context.is_empty();
            roles.extend(policies);
        }
        if let Some(own) = caller.own_role() {
            let policies = compile::own(caller.name(), own)?;
            if compile::is_unsealer(own.role) {
                unsealers.extend(policies.iter().map(|policy| policy.id().clone()));
            }
            roles.extend(policies);
        }
        let set = |policies: Vec<Policy>| {
            PolicySet::from_policies(policies)
                .map_err(|error| Error::internal(format!("policies collide: {error}")))
        };
        let uid = uid("Caller", caller.name());
        let entity =
            Entity::new_no_attrs(uid.clone(), HashSet::from([self::uid("Origin", &origin(caller.name()))]));
        Ok(Self {
            own: caller.own_role().cloned(),
            uid,
            entity,
            on_keys: set(roles.iter().chain(&document.policies).cloned().collect())?,
            by_roles: set(roles.iter().chain(document.forbids()).cloned().collect())?,
            unsealers,
            reads_context,
            from,
            until,
            allowed: RwLock::default(),
            allowed_on_service: AtomicU64::new(0),
        })
    }

    /// Decides, from memory where that is possible.
    pub(super) fn decide(&self, ask: &Ask<'_>) -> Decision {
        let known = match ask.about {
            About::Key(key, Some(traits)) if !(self.reads_context && has_context(ask.action)) => {
                traits.revision.map(|revision| (key, revision))
            }
            _ => None,
        };
        let bit = 1 << ask.action as u32;
        if let Some((key, revision)) = known {
            let allowed = self.allowed.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(allowed) = allowed.get(key).filter(|allowed| allowed.revision == revision)
                && allowed.actions & bit != 0
            {
                return Decision::Allow { lane: lane(ask.action, allowed.by_unsealers & bit != 0) };
            }
        }
        let on_service = matches!(ask.about, About::Service);
        if on_service && self.allowed_on_service.load(Ordering::Relaxed) & bit != 0 {
            return Decision::Allow { lane: lane(ask.action, false) };
        }
        let said = self.ask(ask);
        if !said.allowed {
            return Decision::Deny { rule: said.rule() };
        }
        let by_unsealer = said.by.iter().any(|id| self.unsealers.contains(id));
        if on_service {
            self.allowed_on_service.fetch_or(bit, Ordering::Relaxed);
        }
        if let Some((key, revision)) = known {
            self.remember(key, revision, bit, by_unsealer);
        }
        Decision::Allow { lane: lane(ask.action, by_unsealer) }
    }

    fn remember(&self, key: &KeyId, revision: u64, bit: u64, by_unsealer: bool) {
        let mut allowed = self.allowed.write().unwrap_or_else(PoisonError::into_inner);
        if allowed.len() >= KEYS_KEPT_MAX && !allowed.contains_key(key) {
            allowed.clear();
        }
        let nothing = Allowed { revision, actions: 0, by_unsealers: 0 };
        let row = allowed.entry(key.clone()).or_insert(nothing);
        if row.revision != revision {
            *row = nothing;
        }
        row.actions |= bit;
        if by_unsealer {
            row.by_unsealers |= bit;
        }
    }

    /// Asks Cedar. What is our own work alone is nobody's.
    pub(super) fn ask(&self, ask: &Ask<'_>) -> Said {
        let misplaced = is_about_a_key(ask.action) == matches!(ask.about, About::Service);
        if is_ours_alone(ask.action) || (misplaced && ask.action != Action::ApproveProposal) {
            return Said { allowed: false, by: Vec::new(), errors: Vec::new() };
        }
        let of_roles_alone = !is_about_a_key(ask.action);
        let set = if of_roles_alone { &self.by_roles } else { &self.on_keys };
        match self.request(ask) {
            Ok((request, entities)) => Said::of(&AUTHORIZER.is_authorized(&request, set, &entities)),
            Err(error) => Said { allowed: false, by: Vec::new(), errors: vec![error] },
        }
    }

    fn request(&self, ask: &Ask<'_>) -> Result<(Request, Entities), String> {
        let mut entities = vec![self.entity.clone()];
        let resource = match ask.about {
            About::Service => uid("Service", SERVICE),
            About::Key(key, traits) => {
                let uid = uid("Key", key.as_str());
                entities.push(key_entity(uid.clone(), traits)?);
                uid
            }
        };
        let context = if has_context(ask.action) {
            let uid = uid("EncryptionContext", "");
            entities.push(context_entity(uid.clone(), ask.context)?);
            let pair = ("encryption_context".to_owned(), RestrictedExpression::new_entity_uid(uid));
            Context::from_pairs([pair]).map_err(|error| error.to_string())?
        } else {
            Context::empty()
        };
        let action = ACTIONS[ask.action as usize].clone();
        let request = Request::new(self.uid.clone(), action, resource, context, None)
            .map_err(|error| error.to_string())?;
        let entities = Entities::from_entities(entities, None).map_err(|error| error.to_string())?;
        Ok((request, entities))
    }
}

impl Said {
    fn of(response: &cedar_policy::Response) -> Self {
        let diagnostics = response.diagnostics();
        let mut by: Vec<_> = diagnostics.reason().cloned().collect();
        by.sort();
        let errors: Vec<_> = diagnostics.errors().map(ToString::to_string).collect();
        // A policy that fails is one that does not count, also when it forbids: then nobody knows what it would have said.
        let allowed = response.decision() == Verdict::Allow && errors.is_empty();
        Self { allowed, by, errors }
    }

    /// For the audit log.
    fn rule(&self) -> Cow<'static, str> {
        if !self.errors.is_empty() {
            return "POLICY_FAILED".into();
        }
        match &self.by[..] {
            [] => "NO_RULE".into(),
            // Whatever else forbids it too, one is enough to know where to look.
            [first, ..] => first.to_string().into(),
        }
    }
}

static AUTHORIZER: LazyLock<Authorizer> = LazyLock::new(Authorizer::new);

static ACTIONS: LazyLock<[EntityUid; Action::ALL.len()]> =
    LazyLock::new(|| Action::ALL.map(|action| uid("Action", &action.to_string())));

static TYPES: LazyLock<HashMap<&'static str, EntityTypeName>> = LazyLock::new(|| {
    ["Caller", "Origin", "Action", "Key", "Class", "Service", "EncryptionContext"]
        .into_iter()
        .filter_map(|kind| Some((kind, format!("Kms::{kind}").parse().ok()?)))
        .collect()
});

fn uid(kind: &'static str, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(TYPES[kind].clone(), EntityId::new(id))
}

fn key_entity(uid: EntityUid, traits: Option<Traits<'_>>) -> Result<Entity, String> {
    let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
    let algorithm = traits.map_or_else(String::new, |traits| traits.algorithm.to_string());
    let [owner, purpose] = traits.map_or([""; 2], |traits| [traits.owner, traits.purpose.as_str()]);
    let attributes = [("owner", owner), ("purpose", purpose), ("algorithm", &algorithm)];
    let attributes = attributes.map(|(name, value)| (name.to_owned(), text(value)));
    let class = traits.map(|traits| self::uid("Class", traits.class.as_str()));
    let labels = traits.into_iter().flat_map(|traits| traits.labels);
    let tags = labels.map(|(name, value)| (name.clone(), text(value)));
    Entity::new_with_tags(
        uid,
        HashMap::from(attributes),
        class.into_iter().collect::<HashSet<_>>(),
        tags.collect::<HashMap<_, _>>(),
    )
    .map_err(|error| error.to_string())
}

fn context_entity(uid: EntityUid, context: Option<&EncryptionContext>) -> Result<Entity, String> {
    let pairs = context.into_iter().flat_map(EncryptionContext::pairs);
    let tags =
        pairs.map(|(name, value)| (name.to_owned(), RestrictedExpression::new_string(value.to_owned())));
    Entity::new_with_tags(uid, HashMap::new(), HashSet::new(), tags.collect::<HashMap<_, _>>())
        .map_err(|error| error.to_string())
}

/// Where the proof of a name comes from, for policies about all of them.
fn origin(name: &str) -> String {
    let part = |from: &str| {
        name.get(from.len()..).and_then(|rest| rest.split('/').next()).unwrap_or_default().to_owned()
    };
    match name.parse::<Principal>().map(|principal| principal.source()) {
        Ok(Source::Spiffe) => format!("spiffe://{}", part("spiffe://")),
        Ok(Source::Jwt) => format!("jwt:{}", part("jwt:")),
        Ok(Source::Dns) => "dns".to_owned(),
        Ok(Source::Subject) => "subject".to_owned(),
        Ok(Source::AccessToken) => "access-token".to_owned(),
        Ok(Source::Unix) => "unix".to_owned(),
        Err(_) => "system".to_owned(),
    }
}

fn lane(action: Action, by_unsealer: bool) -> Lane {
    match Lane::of(action) {
        Lane::Wrap if by_unsealer => Lane::Unseal,
        other => other,
    }
}
