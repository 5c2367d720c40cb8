//! The admission webhook: objects get their defaults, and what is wrong with one is said before it is stored.
//!
//! *In*: what the API server asks; how objects are judged, which others know. *Out*: answers; certificates that it trusts. *Bound*: one object of
//! [`review::BYTES_MAX`] per request. *When full*: the request is refused.

pub mod certificate;
mod keeper;
pub mod review;

pub use keeper::Keeper;
