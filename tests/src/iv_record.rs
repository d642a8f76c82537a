//! What the fault shim wrote down: each use of a key with an IV (SP 800-38D section 8: no pair of them may repeat).
//! Small enough in memory for tens of millions: 16 bytes a use.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader},
};

use anyhow::{Context as _, bail, ensure};
use kms_softhsm::faults::{GcmUse, line::Question};

use crate::TestHsm;

/// Every use until the file was read.
#[derive(Debug)]
pub struct IvRecord {
    /// Place of the key below, and IV. Sorted.
    uses: Vec<u128>,
    /// The place of each CKA_ID.
    keys: BTreeMap<Vec<u8>, u32>,
}

/// An IV of 96 bits, as a number.
const IV_LEN: usize = 12;

impl IvRecord {
    /// Reads what was written until now.
    pub fn read(token: &TestHsm) -> anyhow::Result<Self> {
        let TestHsm::Recording(_, file) = token else { bail!("nobody writes IVs down here") };
        let file = File::open(file).with_context(|| file.display().to_string())?;
        let mut record = Self { uses: Vec::new(), keys: BTreeMap::new() };
        for line in BufReader::new(file).lines() {
            let line = line?;
            let Question::Iv(used) = line.parse()? else { bail!("{line} is no use of a key") };
            record.add(used)?;
        }
        record.uses.sort_unstable();
        Ok(record)
    }

    fn add(&mut self, GcmUse { cka_id, iv, .. }: GcmUse) -> anyhow::Result<()> {
        let next = u32::try_from(self.keys.len())?;
        let key = *self.keys.entry(cka_id.context("a key without a CKA_ID")?).or_insert(next);
        self.uses.push(u128::from(key) << (8 * IV_LEN) | Self::iv(&iv)?);
        Ok(())
    }

    /// The IV at the beginning of `wrapped`, as a number.
    pub fn iv(wrapped: &[u8]) -> anyhow::Result<u128> {
        let iv = wrapped.get(..IV_LEN).context("no IV")?;
        Ok(iv.iter().fold(0, |sum, byte| sum << 8 | u128::from(*byte)))
    }

    /// How many uses there were.
    pub fn len(&self) -> usize {
        self.uses.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.uses.is_empty()
    }

    /// How many keys were used.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Fails when a key has met an IV twice.
    pub fn is_without_repetition(&self) -> anyhow::Result<()> {
        let twice = self.uses.windows(2).filter(|pair| pair[0] == pair[1]).count();
        ensure!(twice == 0, "{twice} of {} uses repeat a key and an IV", self.uses.len());
        Ok(())
    }

    /// Fails when one of `ivs` was not written down: a record that misses uses proves nothing.
    pub fn has_all(&self, mut ivs: Vec<u128>) -> anyhow::Result<()> {
        let (answered, mut written) = (ivs.len(), self.ivs());
        ivs.sort_unstable();
        written.sort_unstable();
        let mut written = written.into_iter().peekable();
        ivs.retain(|iv| {
            while written.next_if(|there| there < iv).is_some() {}
            written.next_if_eq(iv).is_none()
        });
        ensure!(ivs.is_empty(), "{} of {answered} wraps were not written down", ivs.len());
        Ok(())
    }

    fn ivs(&self) -> Vec<u128> {
        const MASK: u128 = (1 << (8 * IV_LEN)) - 1;
        self.uses.iter().map(|used| used & MASK).collect()
    }
}
