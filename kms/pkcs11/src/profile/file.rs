//! A profile as a file: reading it, and holding it against the module and the token that it is used on.
//!
//! A profile of another token would make us kill workers where that destroys a token, or take a lost link for bad
//! input. So one that does not fit is refused, never bent.

use std::{fs, io::Read, path::Path};

use cryptoki::{
    mechanism::{MechanismInfo, MechanismType},
    slot::TokenInfo,
};

use super::{MeasuredOn, Profile};

/// Longest profile file in bytes.
const FILE_LEN_MAX: u64 = 64 * 1024;

impl Profile {
    /// Reads a profile file, TOML. The error says what is wrong with it and where.
    pub fn read(path: &Path) -> Result<Self, String> {
        let mut text = String::new();
        let file = fs::File::open(path).map_err(|error| error.to_string())?;
        file.take(FILE_LEN_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
        if text.len() as u64 > FILE_LEN_MAX {
            return Err(format!("it is longer than {FILE_LEN_MAX} bytes"));
        }
        text.parse()
    }

    /// What this says and the token denies, or `None`.
    pub(crate) fn contradiction(
        &self,
        info: &TokenInfo,
        mechanism: impl Fn(MechanismType) -> Option<MechanismInfo>,
    ) -> Option<String> {
        let lacks = |said: bool, field: &str, wanted, name: &str| {
            (said && mechanism(wanted).is_none())
                .then(|| format!("it sets {field}, and the token does not have {name}"))
        };
        let cap = Option::<u64>::from(info.max_rw_session_count());
        let too_many = self.sessions_max.zip(cap).filter(|(max, cap)| u64::from(max.get()) > *cap);
        self.measured_on
            .token_deviation(info)
            .or_else(|| {
                lacks(
                    self.edwards_params.is_some(),
                    "edwards_params",
                    MechanismType::ECC_EDWARDS_KEY_PAIR_GEN,
                    "CKM_EC_EDWARDS_KEY_PAIR_GEN",
                )
            })
            .or_else(|| lacks(self.iv_source.is_some(), "iv_source", MechanismType::AES_GCM, "CKM_AES_GCM"))
            .or_else(|| {
                let said = !self.oaep_hashes.is_empty();
                lacks(said, "oaep_hashes", MechanismType::RSA_PKCS_OAEP, "CKM_RSA_PKCS_OAEP")
            })
            .or_else(|| {
                too_many.map(|(max, cap)| {
                    format!("it says sessions_max = {max}, and the token allows {cap} (CK_TOKEN_INFO)")
                })
            })
    }
}

impl std::str::FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Never the text itself: somebody may have named the PIN file.
        let profile: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
            format!("line {line}: {}", error.message())
        })?;
        if profile.name.trim().is_empty() {
            return Err("name is empty".to_owned());
        }
        if profile.measured_on.module_manufacturer.is_none() {
            return Err(
                "token.module_manufacturer is missing: a profile holds for one kind of token".to_owned()
            );
        }
        Ok(profile)
    }
}

impl MeasuredOn {
    /// How a module deviates from what is named here, or `None`.
    pub(crate) fn module_deviation(&self, manufacturer: &str, description: &str) -> Option<String> {
        differs("manufacturer of the module", self.module_manufacturer.as_deref(), manufacturer)
            .or_else(|| differs("description of the module", self.module_description.as_deref(), description))
    }

    fn token_deviation(&self, info: &TokenInfo) -> Option<String> {
        let model = self.token_model.as_deref();
        differs("manufacturer of the token", self.token_manufacturer.as_deref(), info.manufacturer_id())
            .or_else(|| differs("model of the token", model, info.model()))
    }
}

fn differs(what: &str, said: Option<&str>, found: &str) -> Option<String> {
    let found = found.trim();
    said.filter(|said| *said != found).map(|said| format!("the {what} is {found:?}, and it is for {said:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{CAUTIOUS, KRYOPTIC, SOFTHSM};

    fn refusal(text: &str) -> String {
        text.parse::<Profile>().expect_err("it is refused")
    }

    #[test]
    fn a_profile_for_any_token_or_with_a_word_that_nobody_knows_is_refused() {
        assert!(refusal("name = \"x\"\n[token]\n").contains("module_manufacturer"));
        assert!(refusal("name = \" \"\n[token]\nmodule_manufacturer = \"a\"\n").contains("name is empty"));
        let with = |line: &str| format!("name = \"x\"\n{line}\n[token]\nmodule_manufacturer = \"a\"\n");
        for bad in [
            "may_dye_starting = true",
            "iv_source = \"both\"",
            "sessions_max = 0",
            "oaep_hashes = [\"MD5\"]",
            "edwards_params = 3",
            "errors = { CKR_GENERAL = \"device\" }",
            "errors = { CKR_GENERAL_ERROR = \"fatal\" }",
        ] {
            refusal(&with(bad));
        }
        assert!(with("").parse::<Profile>().is_ok());
        assert!(Profile::read(Path::new("/nonexistent/profile.toml")).is_err());
        assert!(Profile::read(Path::new("/dev/zero")).is_err());
    }

    #[test]
    fn what_a_file_leaves_out_is_what_is_assumed_of_an_unknown_module() {
        let file: Profile =
            "name = \"cautious\"\n[token]\nmodule_manufacturer = \"a\"\n".parse().expect("sound");
        assert_eq!(Profile { measured_on: CAUTIOUS.measured_on, ..file }, CAUTIOUS);
    }

    #[test]
    fn a_profile_reads_back_as_it_was_written() {
        for profile in [SOFTHSM, KRYOPTIC] {
            let text = toml::to_string(&profile).expect("written");
            assert_eq!(text.parse::<Profile>().expect("sound"), profile, "{text}");
        }
    }

    #[test]
    fn another_module_deviates() {
        assert_eq!(SOFTHSM.measured_on.module_deviation("SoftHSM ", "anything"), None);
        let text = SOFTHSM.measured_on.module_deviation("Acme", "anything").expect("another one");
        assert!(text.contains("\"Acme\"") && text.contains("\"SoftHSM\""), "{text}");
    }
}
