//! Messages of plugins: their registration (`pluginregistration`) and what drivers of dynamic resource allocation are
//! asked (`dra/v1`; `v1beta1` has the same messages under another name).

use std::collections::BTreeMap;

/// `pluginregistration.InfoRequest`, and other messages without a field.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Empty {}

/// Who a plugin is.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PluginInfo {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub name: String,
    /// Socket it is asked at; the one it registers at when empty.
    #[prost(string, tag = "3")]
    pub endpoint: String,
    #[prost(string, repeated, tag = "4")]
    pub supported_versions: Vec<String>,
}

/// What came of a registration.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RegistrationStatus {
    #[prost(bool, tag = "1")]
    pub plugin_registered: bool,
    #[prost(string, tag = "2")]
    pub error: String,
}

/// A claim of which devices are to be prepared or given back.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Claim {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub name: String,
}

/// `NodePrepareResourcesRequest` and `NodeUnprepareResourcesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Claims {
    #[prost(message, repeated, tag = "1")]
    pub claims: Vec<Claim>,
}

/// A device that is ready.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Device {
    /// The requests it was allocated for; all when empty.
    #[prost(string, repeated, tag = "1")]
    pub request_names: Vec<String>,
    #[prost(string, tag = "2")]
    pub pool_name: String,
    #[prost(string, tag = "3")]
    pub device_name: String,
    #[prost(string, repeated, tag = "4")]
    pub cdi_device_ids: Vec<String>,
    #[prost(string, optional, tag = "5")]
    pub share_id: Option<String>,
}

/// What came of preparing one claim.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Prepared {
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<Device>,
    #[prost(string, tag = "2")]
    pub error: String,
}

/// By UID of the claim.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PrepareResponse {
    #[prost(btree_map = "string, message", tag = "1")]
    pub claims: BTreeMap<String, Prepared>,
}

/// What came of giving one claim back.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Unprepared {
    #[prost(string, tag = "1")]
    pub error: String,
}

/// By UID of the claim.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct UnprepareResponse {
    #[prost(btree_map = "string, message", tag = "1")]
    pub claims: BTreeMap<String, Unprepared>,
}
