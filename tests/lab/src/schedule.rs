//! Owns the order of the faults: the given list, the whole matrix, or a random order.

use std::collections::VecDeque;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::args::{LabArgs, Plan};
use super::kind::{Effect, Kind, Link, Needs, One};

/// The faults of a run, one after the other.
pub(crate) struct Schedule {
    kinds: Vec<Kind>,
    order: Order,
}

enum Order {
    /// The faults that are left; if `again`, the list starts over after the last.
    InTurn { left: VecDeque<Kind>, again: bool },
    /// Random faults, sometimes two concurrently.
    Random,
}

/// In how many of a hundred cases a second fault is injected concurrently.
const TWO_PERCENT: u32 = 30;

impl Schedule {
    pub(crate) fn new(args: &LabArgs) -> Schedule {
        let ones = |ones: &[One]| ones.iter().copied().map(Kind::One).collect::<Vec<_>>();
        let kinds = match args.plan {
            None if !args.faults.is_empty() => args.faults.clone(),
            None | Some(Plan::Matrix) => possible(args.secure).collect(),
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
                // Faults that change the topic for good happen only once. Faults that copy the whole database, stop all
                // transfers until a batch is found, or need every gateway and the database, are injected alone.
                let once = [
                    One::GrowTopic,
                    One::RecreateTopic,
                    One::DemotePrimary,
                    One::FreezePrimary,
                    One::DamageBatch,
                    One::RotateCertificates,
                ];
                let once = once.map(Kind::One);
                possible(args.secure).filter(|kind| !once.contains(kind)).collect()
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

    /// Returns the next fault, or two concurrent ones; empty when the schedule is finished.
    pub(crate) fn next(&mut self, rng: &mut StdRng) -> Vec<Kind> {
        match &mut self.order {
            Order::Random => {
                let mut both: Vec<Kind> = self.kinds.choose(rng).copied().into_iter().collect();
                let with = self.kinds.choose(rng).filter(|other| both.iter().all(|one| one.area() != other.area()));
                both.extend(with.filter(|_| rng.random_range(0..100) < TWO_PERCENT));
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

    /// Returns the number of faults, if the schedule ends by itself.
    pub(crate) fn len(&self) -> Option<usize> {
        match &self.order {
            Order::InTurn { left, again: false } => Some(left.len()),
            Order::InTurn { .. } | Order::Random => None,
        }
    }

    /// Returns what the stack must have for all faults.
    pub(crate) fn needs(&self) -> Needs {
        let all = self.kinds.iter().map(|kind| kind.needs());
        all.fold(Needs::default(), Needs::and)
    }
}

/// Returns every fault that a run with or without TLS and logins can inject.
fn possible(secure: bool) -> impl Iterator<Item = Kind> {
    Kind::all().into_iter().filter(move |kind| secure || !kind.needs().secure)
}

/// Returns a list of all faults, each with its name and its effect.
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
    fn matrix_has_faults_of_certificates_only_with_them() {
        let rotation = Kind::One(One::RotateCertificates);
        assert!(possible(true).any(|kind| kind == rotation));
        assert!(possible(false).all(|kind| kind != rotation));
    }

    #[test]
    fn matrix_has_every_fault_once() {
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
