//! The epoch's marks: data objects (PKCS#11 §4.6) of our label and application, private, never modified. What they
//! mean is core's; here they are made, read and destroyed.

use cryptoki::object::{Attribute, AttributeInfo, AttributeType, ObjectClass, ObjectHandle};
use kms_core::{
    epoch::{Mark, Step},
    hsm::Fault,
};

use super::session::{TokenSession, Trouble, in_time};
use crate::wire::Request;

impl TokenSession {
    /// Does the step, and gives every mark that is there afterwards.
    pub(super) fn epoch(&self, request: &Request, step: Step) -> Result<Vec<Mark>, Trouble> {
        let _held = match step {
            Step::Read => self.changes.searching()?,
            Step::Create(_) | Step::Destroy(_) => self.changes.changing()?,
        };
        in_time(request)?;
        let mut marks = self.marks()?;
        match step {
            Step::Read => {}
            Step::Create(mark) => {
                // The search has made SoftHSM read, without which it must not write: see `TokenSession::generate`.
                if !marks.iter().any(|(_, found)| *found == mark) {
                    self.session.create_object(&template(mark))?;
                    marks = self.marks()?;
                }
                if !marks.iter().any(|(_, found)| *found == mark) {
                    return Err(Fault::Failed(
                        "C_CreateObject succeeded, but the object is not there".into(),
                    )
                    .into());
                }
            }
            Step::Destroy(mark) => {
                for (handle, _) in marks.iter().filter(|(_, found)| *found == mark) {
                    match self.session.destroy_object(*handle) {
                        // Somebody else was faster.
                        Err(error) if self.is_stale(&error) => {}
                        destroyed => destroyed?,
                    }
                }
                marks = self.marks()?;
            }
        }
        let mut marks: Vec<Mark> = marks.into_iter().map(|(_, mark)| mark).collect();
        marks.sort_unstable();
        marks.dedup();
        Ok(marks)
    }

    fn marks(&self) -> Result<Vec<(ObjectHandle, Mark)>, Trouble> {
        let handles = self.session.find_objects(&ours())?;
        if handles.len() > Mark::COUNT_MAX {
            return Err(Fault::Failed(format!(
                "the token holds {} data objects {:?}, more than {}; remove those of installations that are gone",
                handles.len(),
                Mark::LABEL,
                Mark::COUNT_MAX
            ))
            .into());
        }
        let mut marks = Vec::with_capacity(handles.len());
        for handle in handles {
            marks.extend(self.mark(handle)?.map(|mark| (handle, mark)));
        }
        Ok(marks)
    }

    /// The mark that an object holds, if it holds one. Its length is asked first: anybody with the PIN may have put
    /// something large there.
    fn mark(&self, handle: ObjectHandle) -> Result<Option<Mark>, Trouble> {
        match self.session.get_attribute_info(handle, &[AttributeType::Value])?.first() {
            Some(AttributeInfo::Available(len)) if *len <= Mark::LEN_MAX => {}
            _ => return Ok(None),
        }
        match self.session.get_attributes(handle, &[AttributeType::Value])?.first() {
            Some(Attribute::Value(value)) => Ok(Mark::parse(value).map_err(Fault::from)?),
            _ => Ok(None),
        }
    }
}

/// What all marks have in common. Private, for anybody may make public objects without the PIN, and one that looks
/// like a later release's would keep the server from starting.
fn ours() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Label(Mark::LABEL.into()),
        Attribute::Application(Mark::APPLICATION.into()),
    ]
}

fn template(mark: Mark) -> Vec<Attribute> {
    let own = [Attribute::Modifiable(false), Attribute::Value(mark.to_bytes())];
    ours().into_iter().chain(own).collect()
}
