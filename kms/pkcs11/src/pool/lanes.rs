//! Whose turn it is: what waits in front of the workers, in flows of one caller in one lane each.
//!
//! Between lanes the turns are of *time*: deficit round robin (Shreedhar and Varghese, 1996), with weights, by what each
//! call is expected to cost. A lane may overdraw its account by one call and pays before its next. [`Lane::Unseal`]
//! goes before the others, but for every [`UNSEALS_MAX`]th turn. Inside a lane callers take turns, one call each.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use kms_core::lane::Lane;

/// Unseals in a row while others wait.
const UNSEALS_MAX: u32 = 8;
/// What a lane of weight 1 gets in each round, in nanoseconds.
const QUANTUM_NS: i64 = 500_000;
/// The most that one call is charged, in nanoseconds: who has paid for seconds would be locked out for seconds.
const CHARGE_NS_MAX: i64 = 100_000_000;
/// The lanes that share, as indices of [`Lane::ALL`], and their weights.
const SHARING: [(usize, i64); 3] =
    [(Lane::Wrap as usize, 2), (Lane::Sign as usize, 2), (Lane::Manage as usize, 1)];

/// What waits.
pub(super) struct Lanes<T> {
    lanes: [Waiting<T>; Lane::ALL.len()],
    /// Whose turn it is, as an index of [`SHARING`].
    turn: usize,
    /// Unseals in a row while others waited.
    unseals: u32,
    len: usize,
}

struct Waiting<T> {
    flows: HashMap<Arc<str>, VecDeque<Item<T>>>,
    /// Callers in `flows`, in the order of their turns.
    turns: VecDeque<Arc<str>>,
    /// Below zero is a debt.
    credit_ns: i64,
    work_ns: u64,
    len: usize,
}

struct Item<T> {
    cost_ns: u64,
    value: T,
}

impl<T> Lanes<T> {
    /// Lets `value` wait behind its caller's others, or `first` before them.
    pub(super) fn push(&mut self, lane: Lane, caller: &Arc<str>, cost_ns: u64, first: bool, value: T) {
        let waiting = &mut self.lanes[lane as usize];
        let flow = match waiting.flows.get_mut(caller) {
            Some(flow) => flow,
            None => {
                waiting.turns.push_back(Arc::clone(caller));
                waiting.flows.entry(Arc::clone(caller)).or_default()
            }
        };
        let item = Item { cost_ns, value };
        if first {
            flow.push_front(item)
        } else {
            flow.push_back(item)
        }
        waiting.work_ns += cost_ns;
        waiting.len += 1;
        self.len += 1;
    }

    /// The next one.
    pub(super) fn pop(&mut self) -> Option<T> {
        let lane = self.next_lane()?;
        let waiting = &mut self.lanes[lane];
        let item = waiting.pop()?;
        self.len -= 1;
        if lane != Lane::Unseal as usize {
            waiting.credit_ns -= i64::try_from(item.cost_ns).unwrap_or(i64::MAX).min(CHARGE_NS_MAX);
        }
        Some(item.value)
    }

    /// Takes out what `is_out` says.
    pub(super) fn take(&mut self, mut is_out: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for waiting in &mut self.lanes {
            waiting.take(&mut is_out, &mut taken);
        }
        self.len -= taken.len();
        taken
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many wait in `lane`.
    pub(super) fn len_in(&self, lane: Lane) -> usize {
        self.lanes[lane as usize].len
    }

    /// All work that waits, in nanoseconds of one worker.
    pub(super) fn work_ns(&self) -> u64 {
        self.lanes.iter().map(|waiting| waiting.work_ns).sum()
    }

    /// How much work will be done before a call that comes now, in nanoseconds of one worker. An estimate from above:
    /// every other flow is taken to be as long as its caller's own, as far as its lane holds so much.
    pub(super) fn work_before_ns(&self, lane: Lane, caller: &str, cost_ns: u64) -> u64 {
        let waiting = &self.lanes[lane as usize];
        let own = waiting.flows.get(caller).map_or(0, VecDeque::len) as u64;
        let turns = (own + 1).saturating_mul(waiting.turns.len() as u64);
        let mean_ns = waiting.work_ns.checked_div(waiting.len as u64).unwrap_or(0);
        let in_lane = turns.saturating_mul(mean_ns).min(waiting.work_ns);
        if lane == Lane::Unseal {
            return in_lane;
        }
        let weight_of =
            |index: usize| SHARING.iter().find(|(of, _)| *of == index).map_or(1, |(_, weight)| *weight);
        let weight = weight_of(lane as usize).unsigned_abs();
        let others = SHARING.iter().filter(|(index, _)| *index != lane as usize).map(|(index, other)| {
            let share = (in_lane + cost_ns).saturating_mul(other.unsigned_abs()) / weight;
            self.lanes[*index].work_ns.min(share)
        });
        in_lane + others.sum::<u64>() + self.lanes[Lane::Unseal as usize].work_ns
    }

    fn next_lane(&mut self) -> Option<usize> {
        let unseals = self.lanes[Lane::Unseal as usize].len;
        if unseals == self.len {
            self.unseals = 0;
            return (unseals > 0).then_some(Lane::Unseal as usize);
        }
        if unseals > 0 && self.unseals < UNSEALS_MAX {
            self.unseals += 1;
            return Some(Lane::Unseal as usize);
        }
        self.unseals = 0;
        // Ends: somebody waits, and every round pays something of what it owes.
        loop {
            let (index, _) = SHARING[self.turn];
            if self.lanes[index].len > 0 && self.lanes[index].credit_ns > 0 {
                return Some(index);
            }
            self.turn = (self.turn + 1) % SHARING.len();
            let (index, weight) = SHARING[self.turn];
            let waiting = &mut self.lanes[index];
            // Who waits for nothing saves nothing.
            let most = if waiting.len == 0 { 0 } else { QUANTUM_NS * weight };
            waiting.credit_ns = (waiting.credit_ns + QUANTUM_NS * weight).min(most);
        }
    }
}

impl<T> Waiting<T> {
    fn pop(&mut self) -> Option<Item<T>> {
        let caller = self.turns.pop_front()?;
        let flow = self.flows.get_mut(&caller)?;
        let item = flow.pop_front();
        if flow.is_empty() {
            self.flows.remove(&caller);
        } else {
            self.turns.push_back(caller);
        }
        let item = item?;
        self.len -= 1;
        self.work_ns -= item.cost_ns;
        Some(item)
    }

    fn take(&mut self, is_out: &mut impl FnMut(&T) -> bool, taken: &mut Vec<T>) {
        for flow in self.flows.values_mut() {
            for item in std::mem::take(flow) {
                if is_out(&item.value) {
                    self.len -= 1;
                    self.work_ns -= item.cost_ns;
                    taken.push(item.value);
                } else {
                    flow.push_back(item);
                }
            }
        }
        self.flows.retain(|_, flow| !flow.is_empty());
        self.turns.retain(|caller| self.flows.contains_key(caller));
    }
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self { lanes: Lane::ALL.map(|_| Waiting::default()), turn: 0, unseals: 0, len: 0 }
    }
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self { flows: HashMap::new(), turns: VecDeque::new(), credit_ns: 0, work_ns: 0, len: 0 }
    }
}

#[cfg(test)]
mod tests;
