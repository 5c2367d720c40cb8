//! The producer's name: stable over restarts, and one token of a subject.
//!
//! *In*: a name from the configuration, the environment or the kernel. *Out*: an escaped token. *Bound*: [`bundled_nats::token::NAME_BYTES_MAX`].
//! *When full*: a longer name is cut, and its hash put behind it.

use bundled_nats::token::escape;

/// The producer's name: `given`, or this machine's; escaped.
pub fn producer(given: Option<&str>) -> String {
    escape(&given.and_then(named).or_else(host_name).unwrap_or_else(|| "strata".to_owned()))
}

/// The name of this machine: `HOSTNAME` (the pod's name in Kubernetes), or the kernel's host name.
pub fn host_name() -> Option<String> {
    let variable = std::env::var("HOSTNAME").ok().as_deref().and_then(named);
    variable.or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok().as_deref().and_then(named))
}

fn named(name: &str) -> Option<String> {
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use bundled_nats::token::NAME_BYTES_MAX;

    use super::*;

    #[test]
    fn a_name_is_one_token_of_a_subject() {
        for (name, token) in
            [("pod-0", "pod-0"), ("node1.example.com", "node1%2Eexample%2Ecom"), ("a b:*>", "a%20b%3A%2A%3E"), ("%", "%25")]
        {
            assert_eq!(escape(name), token);
        }
    }

    #[test]
    fn long_names_stay_apart() {
        let (one, two) = (escape(&"x".repeat(200)), escape(&"x".repeat(201)));
        assert_eq!(one.len(), NAME_BYTES_MAX);
        assert_ne!(one, two);
    }

    #[test]
    fn a_given_name_wins() {
        assert_eq!(producer(Some("west.1")), "west%2E1");
        assert!(!producer(None).is_empty());
    }
}
