//! Limits, statistics, memory shortage and removal where cgroup version 2 is all there is: a whole cluster in a guest.

mod cluster;
#[path = "cluster/guest.rs"]
mod guest;

use std::time::Duration;

const SCRIPT: &str = r#"
set -e
/gantry up --data-dir /tmp/data --kubeconfig /tmp/kubeconfig --node-name node-1 --pod-max-pids 64 >/tmp/log 2>&1 &
export KUBECONFIG=/tmp/kubeconfig
trap 'code=$?; if [ $code != 0 ]; then tail -n 40 /tmp/log; /kubectl get pods,events -A; fi; exit $code' EXIT
for i in $(seq 120); do grep -q 'is Ready' /tmp/log && break; sleep 1; done
/kubectl apply -f - <<POD
apiVersion: v1
kind: Pod
metadata: {name: limited}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: gantry.local/self
    args: [sleep, inf]
    resources: {requests: {cpu: 100m}, limits: {cpu: 500m, memory: 64Mi}}
    resizePolicy: [{resourceName: memory, restartPolicy: NotRequired}, {resourceName: cpu, restartPolicy: NotRequired}]
---
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers:
  - {name: c, image: gantry.local/self, args: [burn, memory, '200'], resources: {limits: {memory: 64Mi}}}
POD
/kubectl wait --for=condition=Ready --timeout=90s pod/limited
/kubectl wait --for=jsonpath='{.status.phase}'=Failed --timeout=90s pod/greedy
ended=.status.containerStatuses[0].state.terminated
echo "greedy: $(/kubectl get pod greedy -o jsonpath="{$ended.reason} {$ended.exitCode}")"
id=$(/kubectl get pod limited -o jsonpath='{.status.containerStatuses[0].containerID}' | sed 's|.*//||')
container=$(find /sys/fs/cgroup -type d -name $id)
[ -n "$container" ]
pod=$(dirname $container)
show() {
  printf '%s:' $1
  for file in cpu.max cpu.weight memory.max pids.max; do printf ' %s %s' $file "$(cat $2/$file)"; done
  echo
}
show container $container
show pod $pod
echo "container processes: $(wc -l <$container/cgroup.procs)"
echo "exec: $(/kubectl exec limited -- /gantry self echo through)"
/kubectl get --raw /api/v1/nodes/node-1/proxy/stats/summary | tr ',{' '\n\n' >/tmp/summary
echo "working sets: $(grep -c '"workingSetBytes":[1-9]' /tmp/summary)"
/kubectl patch pod limited --subresource resize -p \
  '{"spec":{"containers":[{"name":"c","resources":{"limits":{"memory":"96Mi","cpu":"250m"}}}]}}'
for i in $(seq 60); do [ "$(cat $container/memory.max)" = 100663296 ] && break; sleep 1; done
show resized $container
/kubectl delete pod limited greedy --timeout=60s
echo "pods' cgroups left: $(find /sys/fs/cgroup -type d -name 'pod*' | wc -l)"
/gantry down --data-dir /tmp/data
echo "cgroups left: $(find /sys/fs/cgroup -type d -name '*gantry*' | wc -l)"
"#;

#[test]
fn a_cluster_on_cgroup_version_2() {
    let scratch = tempfile::tempdir().unwrap();
    let machine = guest::Guest::new().program("/gantry", cluster::GANTRY, scratch.path()).file("/kubectl", kubectl());
    let said = machine.run(SCRIPT, scratch.path(), Duration::from_secs(300));
    for line in [
        "greedy: OOMKilled 137",
        // The weight of 100m is 17 by the container tools' formula.
        "container: cpu.max 50000 100000 cpu.weight 17 memory.max 67108864 pids.max max",
        "pod: cpu.max 50000 100000 cpu.weight 17 memory.max 67108864 pids.max 64",
        "container processes: 1",
        "exec: through",
        "resized: cpu.max 25000 100000 cpu.weight 17 memory.max 100663296 pids.max max",
        "pods' cgroups left: 0",
        "cgroups left: 0",
    ] {
        assert!(said.lines().any(|l| l == line), "{line:?} is missing:\n{said}");
    }
    let counted = said.lines().find_map(|l| l.strip_prefix("working sets: ")).unwrap();
    assert!(counted.parse::<u32>().unwrap() >= 3, "node, pod and container use memory:\n{said}");
}

/// The file of the newest kubectl.
fn kubectl() -> String {
    let found = cluster::run(std::process::Command::new("which").arg(cluster::newest_kubectl()));
    found.trim().to_owned()
}
