//! Rows, written and read. The order in which values are bound is the order of the statements in `commit.rs`.

use kms_core::{
    Key, KeyId, KeyUid, KeyVersion, Kid,
    class::{ClassName, KeyClass, Periods},
    epoch::{Epoch, Installation},
    hsm::{CkaId, KnownAnswer},
    key::{Born, Compromise, Material, TakeOver, Timeline},
    pin_latch::{Holder, Place, State, Try},
    replica::ReplicaId,
    store::{Fault, Generation, QuarantinedObject, RememberedRequest},
    time::{SignedDuration, Timestamp},
};

use crate::{cells::Cells, session::Row, statement::Statement};

pub(crate) fn bind_key(query: Statement, key: &Key) -> Result<Statement, Fault> {
    let corrupt = |column: &str| Fault::Corrupt(format!("key {}: {column} is out of range", key.id));
    let span = |span: SignedDuration, column| i64::try_from(span.as_micros()).map_err(|_| corrupt(column));
    let some_span = |some: Option<SignedDuration>, column| some.map(|some| span(some, column)).transpose();
    let json = |value: serde_json::Result<serde_json::Value>, column| {
        value.map(|value| value.to_string()).map_err(|_| corrupt(column))
    };
    Ok(query
        .bind(key.id.as_str())
        .bind(&key.uid.0[..])
        .bind(key.algorithm.to_string())
        .bind(&key.owner)
        .bind(json(serde_json::to_value(&key.labels), "labels")?)
        .bind(some_span(key.rotation_period, "rotation_period")?)
        .bind(span(key.publish_lead, "publish_lead")?)
        .bind(span(key.max_token_ttl, "max_token_ttl")?)
        .bind(key.created_at.as_microsecond())
        .bind(key.updated_at.as_microsecond())
        .bind(i64::try_from(key.revision).map_err(|_| corrupt("revision"))?)
        .bind(key.tokens_until.map(|at| at.as_microsecond()))
        .bind(key.purpose.as_str())
        .bind(key.class.as_str())
        .bind(json(serde_json::to_value(key.inherited), "inherited")?)
        .bind(span(key.overlap, "overlap")?)
        .bind(some_span(key.destroy_after, "destroy_after")?)
        .bind(json(serde_json::to_value(&key.claim_rules), "claim_rules")?)
        .bind(key.bundles_until.map(|at| at.as_microsecond()))
        .bind(json(serde_json::to_value(&key.required_context), "required_context")?))
}

pub(crate) fn key(row: &dyn Row) -> Result<Key, Fault> {
    let cells = Cells::of(row, "key", "id")?;
    Ok(Key {
        id: cells.parse("id", parse_text)?,
        uid: cells.parse("uid", |bytes: Vec<u8>| bytes.try_into().ok().map(KeyUid))?,
        algorithm: cells.parse("algorithm", parse_text)?,
        purpose: cells.parse("purpose", parse_text)?,
        class: cells.parse("class", parse_text)?,
        inherited: cells.parse("inherited", |json: String| serde_json::from_str(&json).ok())?,
        owner: cells.get("owner")?,
        labels: cells.parse("labels", |json: String| serde_json::from_str(&json).ok())?,
        rotation_period: cells.some_span("rotation_period_us")?,
        publish_lead: SignedDuration::from_micros(cells.get("publish_lead_us")?),
        max_token_ttl: SignedDuration::from_micros(cells.get("max_token_ttl_us")?),
        overlap: SignedDuration::from_micros(cells.get("overlap_us")?),
        destroy_after: cells.some_span("destroy_after_us")?,
        claim_rules: cells.parse("claim_rules", |json: String| serde_json::from_str(&json).ok())?,
        required_context: cells.parse("required_context", |json: String| serde_json::from_str(&json).ok())?,
        tokens_until: cells.parse_some("tokens_until_us", instant)?,
        bundles_until: cells.parse_some("bundles_until_us", instant)?,
        created_at: cells.parse("created_at_us", instant)?,
        updated_at: cells.parse("updated_at_us", instant)?,
        revision: cells.parse("revision", |revision: i64| u64::try_from(revision).ok())?,
    })
}

pub(crate) fn bind_version(query: Statement, id: &KeyId, version: &KeyVersion) -> Statement {
    let born = version.born.as_ref();
    let timeline = born.map(|born| born.timeline);
    let (pair, known_answer) = match born.map(|born| &born.material) {
        Some(Material::Pair { spki, kid }) => (Some((&**spki, kid.as_str())), None),
        Some(Material::Secret { known_answer }) => (None, Some(known_answer.as_bytes())),
        None => (None, None),
    };
    let micros = |at: Option<Timestamp>| at.map(Timestamp::as_microsecond);
    query
        .bind(id.as_str())
        .bind(i64::from(version.number))
        .bind(&version.cka_id.as_bytes()[..])
        .bind(version.earlier_attempts.iter().flat_map(|id| *id.as_bytes()).collect::<Vec<u8>>())
        .bind(&version.token_serial)
        .bind(version.created_at.as_microsecond())
        .bind(pair.map(|(spki, _)| spki))
        .bind(pair.map(|(_, kid)| kid))
        .bind(micros(timeline.map(|timeline| timeline.published_at)))
        .bind(micros(timeline.map(|timeline| timeline.activates_at)))
        .bind(micros(timeline.and_then(|timeline| timeline.retires_at)))
        .bind(micros(timeline.and_then(|timeline| timeline.withdrawn_at)))
        .bind(micros(timeline.and_then(|timeline| timeline.destroys_at)))
        .bind(version.suspended)
        .bind(micros(version.compromise.as_ref().map(|compromise| compromise.at)))
        .bind(micros(version.destroyed_at))
        .bind(version.maker.as_ref().map(ReplicaId::as_str))
        .bind(version.compromise.as_ref().map(|compromise| &compromise.reason))
        .bind(version.takes_over == TakeOver::AtOnce)
        .bind(match version.takes_over {
            TakeOver::At(at) => Some(at.as_microsecond()),
            TakeOver::AfterLead | TakeOver::AtOnce => None,
        })
        .bind(version.cross_signature.as_deref())
        .bind(known_answer)
}

/// A version and the key that it belongs to.
pub(crate) fn version(row: &dyn Row) -> Result<(KeyId, KeyVersion), Fault> {
    let cells = Cells::of(row, "version of key", "key_id")?;
    let id: KeyId = cells.parse("key_id", parse_text)?;
    let number = cells.parse("number", |number: i64| u32::try_from(number).ok())?;
    let cells = Cells::named(row, &format!("version {number} of key {id}"));
    let version = KeyVersion {
        number,
        cka_id: cells.parse("cka_id", |bytes: Vec<u8>| bytes.try_into().ok().map(CkaId::from_bytes))?,
        earlier_attempts: cells.parse("earlier_attempts", |bytes: Vec<u8>| {
            let (ids, rest) = bytes.as_chunks::<16>();
            rest.is_empty().then(|| ids.iter().copied().map(CkaId::from_bytes).collect())
        })?,
        token_serial: cells.get("token_serial")?,
        created_at: cells.parse("created_at_us", instant)?,
        born: born(&cells)?,
        maker: cells.get::<Option<String>>("maker")?.map(ReplicaId::new),
        suspended: cells.get("suspended")?,
        compromise: compromise(&cells)?,
        takes_over: takes_over(&cells)?,
        cross_signature: cells.get::<Option<String>>("cross_signature")?.map(Into::into),
        destroyed_at: cells.parse_some("destroyed_at_us", instant)?,
    };
    Ok((id, version))
}

fn compromise(cells: &Cells<'_>) -> Result<Option<Compromise>, Fault> {
    let Some(at) = cells.parse_some("compromised_at_us", instant)? else { return Ok(None) };
    // An earlier program knew no reasons.
    let reason = cells.get::<Option<String>>("compromise_reason")?.unwrap_or_default();
    Ok(Some(Compromise { at, reason }))
}

fn takes_over(cells: &Cells<'_>) -> Result<TakeOver, Fault> {
    let asked = cells.parse_some("asked_for_us", instant)?;
    Ok(match (cells.get("at_once")?, asked) {
        (true, _) => TakeOver::AtOnce,
        (false, Some(at)) => TakeOver::At(at),
        (false, None) => TakeOver::AfterLead,
    })
}

fn born(cells: &Cells<'_>) -> Result<Option<Born>, Fault> {
    let known_answer = cells.parse_some("known_answer", |bytes: Vec<u8>| KnownAnswer::from_bytes(&bytes))?;
    let material = match (cells.get::<Option<Vec<u8>>>("spki")?, known_answer) {
        (Some(spki), None) => {
            Material::Pair { spki: spki.into(), kid: Kid::from_stored(&cells.get::<String>("kid")?) }
        }
        (None, Some(known_answer)) => Material::Secret { known_answer },
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(cells.corrupt("known_answer", "a pair has none")),
    };
    Ok(Some(Born {
        material,
        timeline: Timeline {
            published_at: cells.parse("published_at_us", instant)?,
            activates_at: cells.parse("activates_at_us", instant)?,
            retires_at: cells.parse_some("retires_at_us", instant)?,
            withdrawn_at: cells.parse_some("withdrawn_at_us", instant)?,
            destroys_at: cells.parse_some("destroys_at_us", instant)?,
        },
    }))
}

pub(crate) fn bind_class(query: Statement, class: &KeyClass) -> Result<Statement, Fault> {
    let corrupt =
        |column: &str| Fault::Corrupt(format!("key class {}: {column} is out of range", class.name));
    let span = |span: SignedDuration, column| i64::try_from(span.as_micros()).map_err(|_| corrupt(column));
    let some_span = |some: Option<SignedDuration>, column| some.map(|some| span(some, column)).transpose();
    let periods = &class.periods;
    Ok(query
        .bind(class.name.as_str())
        .bind(some_span(periods.rotation_period, "rotation_period")?)
        .bind(span(periods.publish_lead, "publish_lead")?)
        .bind(span(periods.max_token_ttl, "max_token_ttl")?)
        .bind(span(periods.overlap, "overlap")?)
        .bind(some_span(periods.destroy_after, "destroy_after")?)
        .bind(i64::try_from(class.revision).map_err(|_| corrupt("revision"))?)
        .bind(class.updated_at.map(Timestamp::as_microsecond))
        .bind(i64::from(class.approvals)))
}

pub(crate) fn class(row: &dyn Row) -> Result<KeyClass, Fault> {
    let cells = Cells::of(row, "key class", "name")?;
    let name: ClassName = cells.parse("name", parse_text)?;
    // An earlier program knew of none.
    let approvals = cells.parse_some("approvals", |number: i64| u32::try_from(number).ok())?;
    Ok(KeyClass {
        name,
        approvals: approvals.unwrap_or_else(|| KeyClass::built_in(name).approvals),
        periods: Periods {
            rotation_period: cells.some_span("rotation_period_us")?,
            publish_lead: SignedDuration::from_micros(cells.get("publish_lead_us")?),
            max_token_ttl: SignedDuration::from_micros(cells.get("max_token_ttl_us")?),
            overlap: SignedDuration::from_micros(cells.get("overlap_us")?),
            destroy_after: cells.some_span("destroy_after_us")?,
        },
        revision: cells.parse("revision", |revision: i64| u64::try_from(revision).ok())?,
        updated_at: cells.parse_some("updated_at_us", instant)?,
    })
}

pub(crate) fn bind_request(query: Statement, request: &RememberedRequest) -> Statement {
    query
        .bind(&request.id)
        .bind(&request.fingerprint[..])
        .bind(request.key.as_str())
        .bind(request.version.map(i64::from))
        .bind(request.at.as_microsecond())
}

pub(crate) fn request(row: &dyn Row) -> Result<RememberedRequest, Fault> {
    let cells = Cells::of(row, "request", "id")?;
    Ok(RememberedRequest {
        id: cells.get("id")?,
        fingerprint: cells.parse("fingerprint", |bytes: Vec<u8>| bytes.try_into().ok())?,
        key: cells.parse("key_id", parse_text)?,
        version: cells.parse_some("version", |number: i64| u32::try_from(number).ok())?,
        at: cells.parse("at_us", instant)?,
    })
}

pub(crate) fn bind_epoch(query: Statement, epoch: &Epoch) -> Result<Statement, Fault> {
    let query = query.bind(&epoch.installation.0[..]);
    Ok(query.bind(count(epoch.value)?).bind(&epoch.nonce[..]).bind(count(epoch.in_token)?))
}

pub(crate) fn epoch(row: &dyn Row) -> Result<Epoch, Fault> {
    let cells = Cells::named(row, "the epoch");
    Ok(Epoch {
        installation: cells
            .parse("installation", |bytes: Vec<u8>| bytes.try_into().ok().map(Installation))?,
        value: cells.parse("value", |value: i64| u64::try_from(value).ok())?,
        nonce: cells.parse("nonce", |bytes: Vec<u8>| bytes.try_into().ok())?,
        in_token: cells.parse("in_token", |value: i64| u64::try_from(value).ok())?,
    })
}

/// An epoch as the databases keep it. No service lives to see one that does not fit; a forged mark may name one.
pub(crate) fn count(epoch: u64) -> Result<i64, Fault> {
    i64::try_from(epoch).map_err(|_| Fault::Corrupt(format!("the epoch {epoch} is out of range")))
}

pub(crate) fn bind_quarantined(query: Statement, object: &QuarantinedObject) -> Statement {
    query
        .bind(&object.token_serial)
        .bind(&object.cka_id)
        .bind(&object.note)
        .bind(&object.by)
        .bind(object.at.as_microsecond())
}

pub(crate) fn quarantined(row: &dyn Row) -> Result<QuarantinedObject, Fault> {
    let cells = Cells::of(row, "quarantined object in token", "token_serial")?;
    Ok(QuarantinedObject {
        token_serial: cells.get("token_serial")?,
        cka_id: cells.get("cka_id")?,
        note: cells.get("note")?,
        by: cells.get("by")?,
        at: cells.parse("at_us", instant)?,
    })
}

pub(crate) fn bind_pin_latch(query: Statement, place: &Place, state: &State) -> Statement {
    let (name, deaths) = match state {
        State::Unproven { .. } => ("unproven", 0),
        State::Proven { deaths, .. } => ("proven", *deaths),
        State::Refused { .. } => ("refused", 0),
    };
    let refused = match state {
        State::Refused { text, at } => Some((text, at)),
        _ => None,
    };
    query
        .bind(&place.token_serial)
        .bind(i64::from(place.pin_generation))
        .bind(name)
        .bind(state.trying().map(|trying| trying.by.as_str()))
        .bind(state.trying().map(|trying| trying.since.as_microsecond()))
        .bind(i64::from(deaths))
        .bind(refused.map(|(text, _)| text))
        .bind(refused.map(|(_, at)| at.as_microsecond()))
}

pub(crate) fn pin_latch(row: &dyn Row) -> Result<State, Fault> {
    let cells = Cells::of(row, "PIN latch of token", "token_serial")?;
    let trying = match cells.get::<Option<String>>("trying_by")? {
        Some(by) => Some(Try { by: Holder::new(by), since: cells.parse("trying_since_us", instant)? }),
        None => None,
    };
    Ok(match cells.get::<String>("state")?.as_str() {
        "unproven" => State::Unproven { trying },
        "proven" => {
            State::Proven { trying, deaths: cells.parse("deaths", |deaths: i64| u32::try_from(deaths).ok())? }
        }
        "refused" => {
            State::Refused { text: cells.get("refused_text")?, at: cells.parse("refused_at_us", instant)? }
        }
        _ => return Err(cells.corrupt("state", "it has no meaning")),
    })
}

pub(crate) fn generation(row: &dyn Row) -> Result<Generation, Fault> {
    let cells = Cells::named(row, "the generation");
    cells.parse("value", |value: i64| u64::try_from(value).ok().map(Generation))
}

/// A generation as the databases keep it.
pub(crate) fn generation_cell(generation: Generation) -> Result<i64, Fault> {
    i64::try_from(generation.0).map_err(|_| Fault::Corrupt(format!("the generation is {}", generation.0)))
}

pub(crate) fn parse_text<T: std::str::FromStr>(text: String) -> Option<T> {
    text.parse().ok()
}

pub(crate) fn instant(micros: i64) -> Option<Timestamp> {
    Timestamp::from_microsecond(micros).ok()
}
