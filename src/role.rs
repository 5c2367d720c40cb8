//! Roles: which parts of Strata one process runs.
//!
//! *In*: the subcommand. *Out*: what of the appliance is started, and who it is on the NATS server. *Bound*: four roles. *When full*: does not
//! apply.

use bundled_nats::Role as User;

/// What a process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Everything.
    Run,
    /// The bundled server alone.
    Nats,
    /// Scraping and publishing.
    Collector,
    /// The relays, and the trim.
    Relay,
}

impl Role {
    /// By its subcommand.
    pub(crate) fn of(name: &str) -> Option<Self> {
        [Self::Run, Self::Nats, Self::Collector, Self::Relay].into_iter().find(|role| role.name() == name)
    }

    /// The subcommand.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Nats => "nats",
            Self::Collector => "collector",
            Self::Relay => "relay",
        }
    }

    /// Whether it scrapes.
    pub(crate) const fn collects(self) -> bool {
        matches!(self, Self::Run | Self::Collector)
    }

    /// Whether it has relays.
    pub(crate) const fn relays(self) -> bool {
        matches!(self, Self::Run | Self::Relay)
    }

    /// Who it is on a server that it does not run itself. `is_strata`: that of `strata nats`, which keeps the streams; else they are ours to keep.
    pub(crate) const fn users(self, is_strata: bool) -> &'static [User] {
        match (self, is_strata) {
            (Self::Collector, true) => &[User::Collector],
            (Self::Collector, false) => &[User::Control, User::Collector],
            // Only the trim purges, and it is here.
            (Self::Relay, _) => &[User::Control, User::Relay],
            (Self::Run | Self::Nats, _) => &User::ALL,
        }
    }

    /// Whether the dead letters are its business.
    pub(crate) const fn sees_dead(self) -> bool {
        !matches!(self, Self::Collector)
    }

    /// By which user it looks at the streams.
    pub(crate) const fn looks_as(self) -> User {
        if let Self::Collector = self { User::Collector } else { User::Relay }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_looks_as_a_user_that_it_has() {
        for role in [Role::Run, Role::Nats, Role::Collector, Role::Relay] {
            for is_strata in [false, true] {
                assert!(role.users(is_strata).contains(&role.looks_as()), "{}", role.name());
            }
        }
    }
}
