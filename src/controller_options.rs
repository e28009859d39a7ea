//! Flags of the controllers, with kube-controller-manager's names.

use crate::config::ClusterOptions;
use anyhow::{Result, bail};
use clap::{ArgAction, Args};
use gantry_controllers::node_ipam::Ranges;
use std::time::Duration;

/// A node's share of IPv4 addresses unless told otherwise.
const LENGTH_V4: u8 = 24;
/// The same of IPv6 addresses.
const LENGTH_V6: u8 = 64;

/// What the controllers do.
#[derive(Args, Clone, Debug)]
pub struct ControllerOptions {
    /// Lifetime of the certificates that are signed for nodes, where they ask for none: 8760h0m0s, 30m, 90s
    #[arg(long, value_name = "DURATION", default_value = "8760h0m0s", value_parser = lifetime)]
    pub cluster_signing_duration: Duration,
    /// A node that is silent for so long is taken for lost
    #[arg(long, value_name = "DURATION", default_value = "50s", value_parser = lifetime)]
    pub node_monitor_grace_period: Duration,
    /// How often a HorizontalPodAutoscaler looks at what is measured
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = lifetime)]
    pub horizontal_pod_autoscaler_sync_period: Duration,
    /// Tokens in Secrets that were not used for so long are marked invalid, and deleted after as long again
    #[arg(long, value_name = "DURATION", default_value = "8760h0m0s", value_parser = lifetime)]
    pub legacy_service_account_token_clean_up_period: Duration,
    /// Give each node that brings none its share of --pod-cidr
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value_t = false, default_missing_value = "true")]
    pub allocate_node_cidrs: bool,
    /// Prefix length of a node's share, in a cluster of one address family [default: 24 for IPv4, 64 for IPv6]
    #[arg(long, value_name = "BITS")]
    pub node_cidr_mask_size: Option<u8>,
    /// Prefix length of a node's share of IPv4 addresses [default: 24]
    #[arg(long, value_name = "BITS")]
    pub node_cidr_mask_size_ipv4: Option<u8>,
    /// Prefix length of a node's share of IPv6 addresses [default: 64]
    #[arg(long, value_name = "BITS")]
    pub node_cidr_mask_size_ipv6: Option<u8>,
}

/// A length of time as Kubernetes' flags spell it, more than none.
fn lifetime(text: &str) -> Result<Duration, String> {
    let length = gantry_kubelet::duration(text)?;
    if length.is_zero() { Err("must be more than 0".into()) } else { Ok(length) }
}

impl ControllerOptions {
    /// What the nodes' ranges are cut out of; None where they are not given out.
    ///
    /// # Errors
    /// Names the flags that do not go together, or the range that cannot be cut.
    pub fn node_ranges(&self, cluster: &ClusterOptions) -> Result<Option<Ranges>> {
        let own = [self.node_cidr_mask_size_ipv4, self.node_cidr_mask_size_ipv6];
        if self.node_cidr_mask_size.is_some() && cluster.pod_cidr.secondary.is_some() {
            bail!("usage of --node-cidr-mask-size is not allowed with dual-stack clusters");
        }
        if self.node_cidr_mask_size.is_some() && own.iter().any(Option::is_some) {
            bail!(
                "usage of --node-cidr-mask-size-ipv4 and --node-cidr-mask-size-ipv6 is not allowed if \
                 --node-cidr-mask-size is set. For dual-stack clusters please unset it."
            );
        }
        if !self.allocate_node_cidrs {
            return Ok(None);
        }
        let [v4, v6] = own;
        let length = |of_family: Option<u8>, default| self.node_cidr_mask_size.or(of_family).unwrap_or(default);
        let pods = cluster.pod_cidr.all().map(|range| {
            let length = if range.addr().is_ipv4() { length(v4, LENGTH_V4) } else { length(v6, LENGTH_V6) };
            (range, length)
        });
        let ranges = Ranges { pods: pods.collect(), services: cluster.service_cidr.to_vec() };
        match ranges.shares() {
            Ok(_) => Ok(Some(ranges)),
            Err(error) => bail!("--allocate-node-cidrs: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        controllers: ControllerOptions,
        #[command(flatten)]
        cluster: ClusterOptions,
    }

    fn ranges(flags: &str) -> Result<Option<Ranges>> {
        let flags = Flags::try_parse_from(std::iter::once("gantry").chain(flags.split_whitespace()))?;
        flags.controllers.node_ranges(&flags.cluster)
    }

    #[test]
    fn lengths_of_time_are_more_than_none() {
        assert_eq!(lifetime("8760h0m0s"), Ok(Duration::from_secs(8760 * 3600)));
        for bad in ["", "0s", "90", "-1h"] {
            assert!(lifetime(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_of_nodes_have_the_length_of_their_family() {
        assert!(ranges("").unwrap().is_none());
        let lengths = |flags: &str| {
            let ranges = ranges(&format!("--allocate-node-cidrs {flags}")).unwrap().unwrap();
            ranges.pods.into_iter().map(|(_, length)| length).collect::<Vec<_>>()
        };
        assert_eq!(lengths(""), [24]);
        assert_eq!(lengths("--node-cidr-mask-size 26"), [26]);
        assert_eq!(lengths("--node-cidr-mask-size-ipv4=25"), [25]);
        let dual = "--cluster-cidr 10.244.0.0/16,fd00:244::/56 --service-cidr 10.96.0.0/16,fd00:96::/112";
        assert_eq!(lengths(dual), [24, 64]);
        assert_eq!(lengths(&format!("{dual} --node-cidr-mask-size-ipv6=60")), [24, 60]);
        let refused = |flags: &str| ranges(flags).unwrap_err().to_string();
        let told = refused(&format!("{dual} --node-cidr-mask-size 26"));
        assert_eq!(told, "usage of --node-cidr-mask-size is not allowed with dual-stack clusters");
        assert!(
            refused("--node-cidr-mask-size 26 --node-cidr-mask-size-ipv4 26")
                .starts_with("usage of --node-cidr-mask-size-ipv4")
        );
        let told = refused("--allocate-node-cidrs --node-cidr-mask-size 8");
        assert_eq!(told, "--allocate-node-cidrs: shares of /8 cannot be cut out of 10.244.0.0/16");
    }
}
