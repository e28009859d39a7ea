//! nf_tables over netlink: an encoder for what the node's rules need, and the socket that commits them.
//!
//! [`Batch`] collects changes of tables, chains, rules, sets and elements; [`Nft::commit`] makes them happen in one
//! transaction. Numbers of messages, attributes and keys are those of the kernel's `linux/netfilter/nf_tables.h`.

pub(crate) mod batch;
mod rule;
pub(crate) mod socket;
mod table;
mod value;
pub(crate) mod wire;

use std::io;

pub use batch::Batch;
pub use rule::{
    ADDRESS_TYPE_LOCAL, CT_STATE_ESTABLISHED, CT_STATE_NEW, CT_STATE_RELATED, CT_STATUS_DNAT, Compare, Ct, FibAddress,
    Meta, Register, Reject, Rule, SetUpdate,
};
pub use socket::Nft;
pub use table::{
    BaseChain, ChainKind, Element, ElementData, Family, Field, Hook, MapData, PRIORITY_DNAT, PRIORITY_FILTER,
    PRIORITY_SNAT, Set, Table, network_ranges,
};
pub use value::{Value, Verdict};

/// What can go wrong with nf_tables.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The socket does not work.
    #[error("nf_tables: {what}: {source}")]
    Socket {
        /// What was being done.
        what: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The kernel refused a part of a transaction, and with it the whole.
    #[error("nf_tables: {action} {object}: {source}{detail}")]
    Rejected {
        /// What the part was to do.
        action: &'static str,
        /// To which object: `table/name`.
        object: String,
        /// What the kernel adds, in parentheses, if anything.
        detail: String,
        /// The error.
        source: io::Error,
    },
    /// The kernel did not say whether the transaction happened.
    #[error("nf_tables: the kernel gave no answer")]
    Unacknowledged,
    /// The transaction is larger than any sensible rule set.
    #[error("nf_tables: a transaction of {size} bytes is too large")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
    },
}

#[cfg(test)]
mod tests;
