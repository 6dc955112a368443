//! Owns what is broken when: the list, the whole matrix, or at random.

use std::collections::VecDeque;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::args::{LabArgs, Plan};
use super::kind::{Effect, Kind, Link, Needs, One};

/// Faults, one after the other.
pub(crate) struct Schedule {
    /// Of these.
    kinds: Vec<Kind>,
    order: Order,
}

enum Order {
    /// These are left; when they are over all come again, if so.
    InTurn { left: VecDeque<Kind>, again: bool },
    /// At times two at once.
    Random,
}

/// In how many of a hundred cases a second fault comes with the first.
const TWO_AT_ONCE: u32 = 30;

impl Schedule {
    pub(crate) fn new(args: &LabArgs) -> Schedule {
        let ones = |ones: &[One]| ones.iter().copied().map(Kind::One).collect::<Vec<_>>();
        let kinds = match args.plan {
            None if !args.faults.is_empty() => args.faults.clone(),
            None | Some(Plan::Matrix) => Kind::all(),
            Some(Plan::Quick) => {
                let mut quick = ones(&[
                    One::KillTransfer,
                    One::KillGateway,
                    One::KillBroker,
                    One::KillPostgres,
                    One::FreezeTransfer,
                    One::KillClient,
                    One::Scale,
                    One::Poison,
                    One::KillServices,
                ]);
                quick.insert(4, Kind::Network(Link::TransfersPostgres, Effect::HalfOpen));
                quick
            }
            Some(Plan::Random) => {
                // What changes the topic for good is done once, not again and again. What copies the whole database, or stops all
                // transfers until a batch is found, has the lab to itself.
                let once =
                    [One::GrowTopic, One::RecreateTopic, One::DemotePrimary, One::FreezePrimary, One::DamageBatch];
                let once = once.map(Kind::One);
                Kind::all().into_iter().filter(|kind| !once.contains(kind)).collect()
            }
            Some(Plan::Kills) => ones(&[
                One::KillTransfer,
                One::KillTransfer,
                One::KillGateway,
                One::KillServices,
                One::KillBackend,
                One::KillPostgres,
                One::KillBroker,
                One::KillClient,
            ]),
        };
        let random = matches!(args.plan, Some(Plan::Random | Plan::Kills));
        let order = match random {
            true => Order::Random,
            false => Order::InTurn { left: kinds.clone().into(), again: args.minutes.is_some() },
        };
        Schedule { kinds, order }
    }

    /// What comes next, one or two at once; nothing when all is done.
    pub(crate) fn next(&mut self, rng: &mut StdRng) -> Vec<Kind> {
        match &mut self.order {
            Order::Random => {
                let mut both: Vec<Kind> = self.kinds.choose(rng).copied().into_iter().collect();
                let with = self.kinds.choose(rng).filter(|other| both.iter().all(|one| one.area() != other.area()));
                both.extend(with.filter(|_| rng.random_range(0..100) < TWO_AT_ONCE));
                both
            }
            Order::InTurn { left, again } => {
                if left.is_empty() && *again {
                    left.extend(&self.kinds);
                }
                left.pop_front().into_iter().collect()
            }
        }
    }

    /// How many there are, if they end by themselves.
    pub(crate) fn len(&self) -> Option<usize> {
        match &self.order {
            Order::InTurn { left, again: false } => Some(left.len()),
            Order::InTurn { .. } | Order::Random => None,
        }
    }

    /// What the stack must have for all of them.
    pub(crate) fn needs(&self) -> Needs {
        let all = self.kinds.iter().map(|kind| kind.needs());
        all.fold(Needs::default(), Needs::and)
    }
}

/// The names of all faults and what each does.
pub(crate) fn list() -> String {
    let width = Kind::all().iter().map(|kind| kind.name().len()).max().unwrap_or(0);
    Kind::all().iter().map(|kind| format!("{:width$}  {}\n", kind.name(), kind.about())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;
    use rand::SeedableRng;

    #[test]
    fn the_matrix_has_every_fault_once() {
        let mut schedule =
            Schedule { kinds: Kind::all(), order: Order::InTurn { left: Kind::all().into(), again: false } };
        let mut rng = StdRng::seed_from_u64(0);
        let done: Vec<Kind> = std::iter::from_fn(|| schedule.next(&mut rng).pop()).collect();
        assert_eq!(done, Kind::all());
        assert_eq!(
            done.len(),
            One::value_variants().len() + Link::value_variants().len() * Effect::value_variants().len()
        );
    }
}
