//! What lies in the token in memory: listing it, and tampering with it as somebody with the PIN could.

use super::{
    aes::SecretKey,
    hsm::{SoftHsm, State, generate},
};
use crate::{
    algorithm::KeySpec,
    hsm::{CkaId, Cursor, Found, Half, KeyObject, Object, PAGE_OBJECTS_MAX, Page},
};

impl SoftHsm {
    /// Puts an object into the token that nobody generated through us.
    pub fn plant(&self, object: Object) {
        self.lock().planted.push(object);
    }

    /// Removes a key behind our back.
    pub fn lose(&self, id: CkaId) {
        let mut state = self.lock();
        state.pairs.remove(&id);
        state.secrets.remove(&id);
    }

    /// Changes the attributes of a private or secret key behind our back.
    pub fn tamper(&self, id: CkaId, change: impl FnOnce(&mut KeyObject)) {
        let mut state = self.lock();
        if let Some(pair) = state.pairs.get_mut(&id) {
            change(&mut pair.object);
        } else if let Some(secret) = state.secrets.get_mut(&id) {
            change(&mut secret.object);
        }
    }

    /// Puts another key of the right template in the place of one.
    #[expect(clippy::expect_used, reason = "a fake: generating works")]
    pub fn replace(&self, id: CkaId, spec: KeySpec) {
        if let Some(secret) = self.lock().secrets.get_mut(&id) {
            *secret = SecretKey::generate(secret.label.clone(), secret.object).expect("a key");
            return;
        }
        let (key, spki) = generate(spec).expect("a pair");
        if let Some(pair) = self.lock().pairs.get_mut(&id) {
            (pair.key, pair.public) = (key, vec![spki]);
        }
    }

    /// Every CKA_ID, in order.
    pub fn ids(&self) -> Vec<CkaId> {
        let state = self.lock();
        let mut ids: Vec<_> = state.pairs.keys().chain(state.secrets.keys()).copied().collect();
        ids.sort_unstable();
        ids
    }
}

impl State {
    pub(super) fn find(&self, id: CkaId) -> Found {
        let mut found = Found::default();
        for object in self.objects().into_iter().filter(|object| object.cka_id == id.as_bytes()) {
            match object.half {
                Half::Private(private) => found.private.push(private),
                Half::Public(spki) => found.public.push(spki.unwrap_or_default()),
                Half::Secret(secret) => found.secret.push(secret),
            }
        }
        found
    }

    pub(super) fn list(&self, after: Option<&Cursor>) -> Page {
        let mut objects = self.objects();
        objects.sort_by(|a, b| (&a.cka_id, is_public(a)).cmp(&(&b.cka_id, is_public(b))));
        let ids = || objects.iter().map(|object| object.cka_id.as_slice());
        let start = after.map_or(0, |cursor| cursor.position(ids()));
        let end = objects.len().min(start + PAGE_OBJECTS_MAX);
        let next = if end < objects.len() { Cursor::behind(ids().take(end)) } else { None };
        Page { objects: objects.drain(start..end).collect(), next }
    }

    fn objects(&self) -> Vec<Object> {
        let mut objects = self.planted.clone();
        for (id, pair) in &self.pairs {
            let object = |half| Object { cka_id: id.as_bytes().to_vec(), label: pair.label.clone(), half };
            objects.push(object(Half::Private(pair.object)));
            objects.extend(pair.public.iter().map(|spki| object(Half::Public(Some(spki.clone())))));
        }
        objects.extend(self.secrets.iter().map(|(id, secret)| Object {
            cka_id: id.as_bytes().to_vec(),
            label: secret.label.clone(),
            half: Half::Secret(secret.object),
        }));
        objects
    }
}

fn is_public(object: &Object) -> bool {
    matches!(object.half, Half::Public(_))
}
