//! What the token holds against what the store knows: one account of both, CKA_ID by CKA_ID.
//!
//! Everything here is a pure function of a listing and a picture of the rows. It names what does not fit; it never
//! destroys, for an object that we do not know may be somebody's only copy.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    str::FromStr,
};

use crate::{
    Error, Key, KeyId, KeyVersion,
    catalog::Picture,
    hsm::{CkaId, Found, Half, KeyObject, Object, Usage},
    key::Material,
    store::QuarantinedObject,
};

/// What the objects under one CKA_ID, or their absence, mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The pair of a version, whole and as it must be.
    Live,
    /// Of a version whose birth is not over, with or without objects.
    Resuming,
    /// Ours, and no live row's: of an attempt at a birth that was given up, of a destroyed version, or made by a
    /// kms whose rows are not here (an older database was restored).
    Orphan,
    /// A version whose pair is missing, not whole, or another one.
    Dangling,
    /// A version whose private key is not as its template asks for.
    Deviating,
    /// Somebody else's.
    Foreign,
    /// An orphan or foreign object that an administrator has put on record: it raises no alarm.
    Quarantined,
}

/// The account of one CKA_ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// CKA_ID. Empty for all objects that have none.
    pub cka_id: Vec<u8>,
    /// What it means.
    pub state: State,
    /// CKA_LABEL, of one of its objects.
    pub label: String,
    /// Private key objects.
    pub private: usize,
    /// Public key objects.
    pub public: usize,
    /// Secret key objects.
    pub secret: usize,
    /// The version whose row names this CKA_ID, or did.
    pub version: Option<(KeyId, u32)>,
    /// What is wrong with the objects of a version.
    pub finding: Option<Finding>,
    /// The record, of a quarantined one.
    pub quarantine: Option<QuarantinedObject>,
}

/// What is wrong with the objects under the CKA_ID of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// A private key is there that its template does not allow; which attribute.
    Deviates(&'static str),
    /// The one public key there is not the one on record.
    OtherKey,
    /// There is not exactly one object of each class that there should be, or one of another class.
    NotWhole {
        /// Private key objects.
        private: usize,
        /// Public key objects.
        public: usize,
        /// Secret key objects.
        secret: usize,
    },
}

/// The whole account, in the order of CKA_ID.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// One item for each CKA_ID that the token or a row has; versions that are destroyed and gone are left out.
    pub items: Vec<Item>,
}

/// How many items are in each state, in the order of [`State::ALL`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts([u64; State::ALL.len()]);

/// The objects of the token, by CKA_ID.
#[derive(Default)]
pub(crate) struct Contents(BTreeMap<Vec<u8>, Group>);

#[derive(Default)]
struct Group {
    label: String,
    /// Whether a label has the form of ours.
    labelled_by_us: bool,
    found: Found,
}

/// The version that names a CKA_ID.
struct Owner<'a> {
    key: &'a Key,
    row: &'a KeyVersion,
    /// Whether it is an attempt that was given up.
    given_up: bool,
}

/// Compares what lies under the CKA_ID of a born version with its template, and with its public key on record if it is a
/// pair. That a secret key is the right one is seen when it is used.
///
/// A session without the PIN can add objects whose CKA_PRIVATE is false. One that is *additional* is told, as a pair
/// that is not whole, and is no difference: else anybody who reaches the token could end every key.
pub(crate) fn examine(usage: Usage, material: &Material, found: &Found) -> Option<Finding> {
    let (judged, whole) = match material {
        Material::Pair { .. } => (&found.private, (1, 1, 0)),
        Material::Secret { .. } => (&found.secret, (0, 0, 1)),
    };
    if let Some(deviation) = deviation(judged, usage) {
        return Some(Finding::Deviates(deviation));
    }
    if let Material::Pair { spki, .. } = material
        && matches!(found.public.as_slice(), [public] if *public != **spki)
    {
        return Some(Finding::OtherKey);
    }
    let (private, public, secret) = (found.private.len(), found.public.len(), found.secret.len());
    ((private, public, secret) != whole).then_some(Finding::NotWhole { private, public, secret })
}

fn deviation(objects: &[KeyObject], usage: Usage) -> Option<&'static str> {
    let behind_the_pin = objects.iter().any(|object| object.private);
    let mut judged = objects.iter().filter(|object| object.private || !behind_the_pin);
    judged.find_map(|object| object.deviation(usage))
}

/// Takes the account of the token of that serial number.
pub(crate) fn classify(contents: Contents, picture: &Picture, token_serial: &str) -> Inventory {
    let mut owners = owners(picture);
    let mut items: Vec<_> = contents
        .0
        .into_iter()
        .map(|(cka_id, group)| {
            let owner = owners.remove(cka_id.as_slice());
            let mut item = Item::of(cka_id, group, owner.as_ref());
            if matches!(item.state, State::Orphan | State::Foreign)
                && let Some(record) = picture.quarantined(token_serial, &item.cka_id)
            {
                item.state = State::Quarantined;
                item.quarantine = Some(record.clone());
            }
            item
        })
        .collect();
    let without_objects = owners.into_iter().filter(|(_, owner)| owner.expects_objects());
    items.extend(
        without_objects.map(|(cka_id, owner)| Item::of(cka_id.to_vec(), Group::default(), Some(&owner))),
    );
    items.sort_by(|a, b| a.cka_id.cmp(&b.cka_id));
    Inventory { items }
}

fn owners(picture: &Picture) -> HashMap<&[u8], Owner<'_>> {
    let mut owners = HashMap::new();
    let rows = picture
        .keys
        .values()
        .flat_map(|entry| entry.versions.iter().map(|version| (&entry.key, &version.row)));
    for (key, row) in rows {
        for id in &row.earlier_attempts {
            owners.insert(&id.as_bytes()[..], Owner { key, row, given_up: true });
        }
        owners.insert(&row.cka_id.as_bytes()[..], Owner { key, row, given_up: false });
    }
    owners
}

impl Owner<'_> {
    /// Whether its absence from the token is worth telling.
    fn expects_objects(&self) -> bool {
        !self.given_up && self.row.destroyed_at.is_none()
    }
}

impl Item {
    fn of(cka_id: Vec<u8>, group: Group, owner: Option<&Owner<'_>>) -> Self {
        let ours_by_form = cka_id.len() == 16 && group.labelled_by_us;
        let mut finding = None;
        let state = match owner {
            None if ours_by_form => State::Orphan,
            None => State::Foreign,
            Some(owner) if !owner.expects_objects() => State::Orphan,
            Some(owner) => match &owner.row.born {
                None => State::Resuming,
                Some(born) => {
                    finding = examine(owner.key.algorithm.usage(), &born.material, &group.found);
                    finding.map_or(State::Live, Finding::state)
                }
            },
        };
        Self {
            cka_id,
            state,
            label: group.label,
            private: group.found.private.len(),
            public: group.found.public.len(),
            secret: group.found.secret.len(),
            version: owner.map(|owner| (owner.key.id.clone(), owner.row.number)),
            finding,
            quarantine: None,
        }
    }

    /// The CKA_ID as ours are, if it has that form.
    pub(crate) fn id(&self) -> Option<CkaId> {
        <[u8; 16]>::try_from(self.cka_id.as_slice()).ok().map(CkaId::from_bytes)
    }
}

impl Inventory {
    /// How many items are in each state.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        self.items.iter().for_each(|item| counts.0[item.state as usize] += 1);
        counts
    }
}

impl Counts {
    /// Every state and its count.
    pub fn iter(&self) -> impl Iterator<Item = (State, u64)> {
        State::ALL.into_iter().zip(self.0)
    }

    /// The count of one state.
    pub fn of(&self, state: State) -> u64 {
        self.0[state as usize]
    }
}

impl Contents {
    pub(crate) fn add(&mut self, objects: Vec<Object>) {
        for Object { cka_id, label, half } in objects {
            let group = self.0.entry(cka_id).or_default();
            group.labelled_by_us |= is_label_of_ours(&label);
            if group.label.is_empty() {
                group.label = label;
            }
            match half {
                Half::Private(private) => group.found.private.push(private),
                Half::Public(spki) => group.found.public.push(spki.unwrap_or_default()),
                Half::Secret(secret) => group.found.secret.push(secret),
            }
        }
    }
}

/// `KEY_ID/NUMBER`, as a birth labels its objects.
fn is_label_of_ours(label: &str) -> bool {
    label.split_once('/').is_some_and(|(key, number)| {
        key.parse::<KeyId>().is_ok() && number.parse::<u32>().is_ok_and(|number| number > 0)
    })
}

impl Finding {
    /// The state of an item with this finding.
    pub(crate) fn state(self) -> State {
        match self {
            Self::Deviates(_) => State::Deviating,
            Self::OtherKey | Self::NotWhole { .. } => State::Dangling,
        }
    }

    /// Machine-readable, for errors and the audit log.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Deviates(_) => "ATTRIBUTES_DEVIATE",
            Self::OtherKey => "PUBLIC_KEY_DIFFERS",
            Self::NotWhole { .. } => "PAIR_NOT_WHOLE",
        }
    }

    /// Whether what is there is not ours as we made it, as against something that is away. Only then is a version
    /// taken out of service: a token that shows nothing must not end every key.
    pub(crate) fn is_difference(self) -> bool {
        !matches!(self, Self::NotWhole { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deviates(deviation) => f.write_str(deviation),
            Self::OtherKey => f.write_str("the public key is not the one on record"),
            Self::NotWhole { private: 0, public: 0, secret: 0 } => f.write_str("the key is not in the token"),
            Self::NotWhole { private, public, secret: 0 } => {
                write!(
                    f,
                    "{private} private and {public} public objects instead of one of each, or of one secret key"
                )
            }
            Self::NotWhole { private, public, secret } => write!(
                f,
                "{secret} secret, {private} private and {public} public objects instead of one secret key, or of one of each \
                 half of a pair"
            ),
        }
    }
}

impl State {
    /// Every state, for tables and metrics.
    pub const ALL: [Self; 7] = [
        Self::Live,
        Self::Resuming,
        Self::Orphan,
        Self::Dangling,
        Self::Deviating,
        Self::Foreign,
        Self::Quarantined,
    ];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live => "live",
            Self::Resuming => "resuming",
            Self::Orphan => "orphan",
            Self::Dangling => "dangling",
            Self::Deviating => "deviating",
            Self::Foreign => "foreign",
            Self::Quarantined => "quarantined",
        })
    }
}

impl FromStr for State {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let named = Self::ALL.into_iter().find(|state| state.to_string() == text);
        named.ok_or_else(|| {
            let all = Self::ALL.map(|state| state.to_string()).join(", ");
            Error::invalid("state", format!("unknown state; use one of {all}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_a_birth_does_not_write_are_not_ours() {
        for label in
            ["", "web", "web/", "web/0", "web/x", "web/1/2", "Web/1", "/1", "web/-1", "web/4294967296"]
        {
            assert!(!is_label_of_ours(label), "{label:?}");
        }
        assert!(is_label_of_ours("web/1") && is_label_of_ours("a.b_c-d/4294967295"));
    }

    #[test]
    fn every_state_stands_in_its_place_and_reads_back() {
        for (place, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, place);
            assert_eq!(state.to_string().parse(), Ok(state));
        }
        assert_eq!("lost".parse::<State>().expect_err("unknown").field(), Some("state"));
    }
}
