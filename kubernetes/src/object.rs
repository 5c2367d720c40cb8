//! Objects of a cluster as far as labels, addresses and states need them; the rest is passed over while an answer is read.
//!
//! *In*: JSON of the API server. *Out*: slim types. *Bound*: that of the objects that were asked for. *When full*: does not apply.
//!
//! Every field may be missing or null: what one object lacks never stops the others.

mod address;
mod meta;
mod workload;

pub use address::{
    Address, Backend, ContainerPort, Endpoint, EndpointPort, EndpointSlice, Endpoints, Ingress, IngressRule, Service, ServicePort, Subset,
    TargetRef,
};
pub use meta::{Meta, Owner, Pairs};
pub use workload::{Container, Job, Namespace, Node, NodeAddress, Pod, ReplicaSet};

use kube::core::DynamicResourceScope;
use serde::{Deserialize, Deserializer};

/// An object that can be watched.
pub trait Object:
    kube::Resource<DynamicType = (), Scope = DynamicResourceScope>
    + Clone
    + std::fmt::Debug
    + serde::de::DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Name, labels and the like.
    fn metadata(&self) -> &Meta;

    /// Lets go of what only the watch itself needs.
    fn strip(&mut self);
}

/// What kube must know of a kind, and its metadata.
macro_rules! kind {
    ($type:ident, $group:literal, $version:literal, $plural:literal, metadata_only = $slim:literal) => {
        impl kube::Resource for $type {
            type DynamicType = ();
            // All kinds alike: whether one is in namespaces is said where it is watched.
            type Scope = kube::core::DynamicResourceScope;

            fn kind((): &()) -> std::borrow::Cow<'_, str> {
                stringify!($type).into()
            }

            fn group((): &()) -> std::borrow::Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> std::borrow::Cow<'_, str> {
                $version.into()
            }

            fn plural((): &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }

            fn metadata_api() -> bool {
                $slim
            }

            fn meta(&self) -> &kube::core::ObjectMeta {
                self.metadata.for_watch()
            }

            fn meta_mut(&mut self) -> &mut kube::core::ObjectMeta {
                self.metadata.for_watch_mut()
            }
        }

        impl $crate::object::Object for $type {
            fn metadata(&self) -> &$crate::object::Meta {
                &self.metadata
            }

            fn strip(&mut self) {
                self.metadata.strip();
            }
        }
    };
}
pub(crate) use kind;

/// A value that may be null where it may be missing.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
