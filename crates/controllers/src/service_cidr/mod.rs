//! Ranges of addresses for Services: a range is held by a finalizer while a Service has an address that no other range
//! gives, and the IPAddresses of Services are kept right.

pub mod protection;
pub mod repair;
