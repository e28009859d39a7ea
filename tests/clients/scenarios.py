"""What programs written with the Python client do, against a running cluster.

Usage: KUBECONFIG=FILE python scenarios.py [PART-OF-A-NAME]

Every scenario has a namespace and a connection of its own; they run side by side. Prints a line for each, the trace of
those that fail, and exits 1 if one did.
"""

import base64
import concurrent.futures
import datetime
import json
import os
import socket
import sys
import tempfile
import threading
import time
import traceback
import urllib.request

import yaml
from kubernetes import client, config, dynamic, informer, stream, utils, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import exceptions as dynamic_exceptions
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.configmaplock import ConfigMapLock
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock

IMAGE = "gantry.local/self"
SHELL = "test.local/busybox:1"
PATIENCE = 90.0
SCENARIOS = []


def scenario(function):
    SCENARIOS.append(function)
    return function


def same(got, wanted, what=""):
    assert got == wanted, f"{what}\n  got    {got!r}\n  wanted {wanted!r}"


def eventually(what, check):
    """The first true value of `check`."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        value = check()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"never: {what}")


def refused(code, reason, call, *args, **kwargs):
    """The Status of a call that must fail in this way."""
    try:
        value = call(*args, **kwargs)
    except ApiException as e:
        status = json.loads(e.body)
        same((e.status, status["code"], status["reason"]), (code, code, reason), status)
        same((status["kind"], status["apiVersion"], status["status"]), ("Status", "v1", "Failure"))
        return status
    raise AssertionError(f"was not refused: {value}")


class Room:
    """One scenario's clients and namespace."""

    def __init__(self, name):
        self.api = client.ApiClient()
        self.core = client.CoreV1Api(self.api)
        self.apps = client.AppsV1Api(self.api)
        self.batch = client.BatchV1Api(self.api)
        self.namespace = "py-" + name.replace("_", "-")
        self.core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=self.namespace)))

    def config_map(self, name, labels=None, **data):
        metadata = client.V1ObjectMeta(name=name, labels=labels)
        return self.core.create_namespaced_config_map(self.namespace, client.V1ConfigMap(metadata=metadata, data=data))

    def pod(self, name, args=None, image=IMAGE, command=None, probe=None):
        """A pod that is Ready."""
        container = client.V1Container(name="main", image=image, args=args, command=command, readiness_probe=probe)
        body = client.V1Pod(
            metadata=client.V1ObjectMeta(name=name, labels={"app": name}),
            spec=client.V1PodSpec(containers=[container], termination_grace_period_seconds=0),
        )
        eventually("the default service account", self.account)
        self.core.create_namespaced_pod(self.namespace, body)

        def ready():
            pod = self.core.read_namespaced_pod_status(name, self.namespace)
            conditions = {c.type: c.status for c in pod.status.conditions or []}
            return conditions.get("Ready") == "True" and pod

        return eventually(f"pod {name} Ready", ready)

    def account(self):
        try:
            return self.core.read_namespaced_service_account("default", self.namespace)
        except ApiException as e:
            same(e.status, 404)
            return None


@scenario
def writing_and_reading(room):
    """Create, read, list, replace, delete; what the server fills in."""
    core, ns = room.core, room.namespace
    made = room.config_map("settings", {"tier": "front"}, colour="green")
    same((made.metadata.name, made.metadata.namespace, made.data), ("settings", ns, {"colour": "green"}))
    assert made.metadata.uid and made.metadata.resource_version
    assert isinstance(made.metadata.creation_timestamp, datetime.datetime)
    same([m.manager for m in made.metadata.managed_fields], ["OpenAPI-Generator"], made.metadata.managed_fields)
    read = core.read_namespaced_config_map("settings", ns)
    same(read, made)

    read.data["size"] = "large"
    replaced = core.replace_namespaced_config_map("settings", ns, read)
    same(replaced.data, {"colour": "green", "size": "large"})
    same(replaced.metadata.uid, made.metadata.uid)
    status = refused(409, "Conflict", core.replace_namespaced_config_map, "settings", ns, made)
    same(
        status["message"],
        'Operation cannot be fulfilled on configmaps "settings": the object has been modified; '
        "please apply your changes to the latest version and try again",
    )
    same(status["details"], {"name": "settings", "kind": "configmaps"})

    generated = core.create_namespaced_config_map(
        ns, client.V1ConfigMap(metadata=client.V1ObjectMeta(generate_name="made-", labels={"tier": "back"}))
    )
    assert generated.metadata.name.startswith("made-") and len(generated.metadata.name) == 10
    front = core.list_namespaced_config_map(ns, label_selector="tier=front")
    same([c.metadata.name for c in front.items], ["settings"])
    named = core.list_namespaced_config_map(ns, field_selector=f"metadata.name={generated.metadata.name}")
    same(len(named.items), 1)
    everywhere = core.list_config_map_for_all_namespaces(label_selector="tier in (front, back)")
    mine = [c.metadata.name for c in everywhere.items if c.metadata.namespace == ns]
    same(sorted(mine), sorted(["settings", generated.metadata.name]))

    # Pages.
    pages = []
    token = None
    while True:
        page = core.list_namespaced_config_map(ns, label_selector="tier", limit=1, _continue=token)
        pages.append([c.metadata.name for c in page.items])
        token = page.metadata._continue
        if not token:
            break
    same([len(p) for p in pages], [1, 1])

    trial = core.create_namespaced_config_map(
        ns, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="trial")), dry_run="All"
    )
    assert trial.metadata.uid
    refused(404, "NotFound", core.read_namespaced_config_map, "trial", ns)

    gone = core.delete_namespaced_config_map("settings", ns)
    same((gone["status"], gone["details"]), ("Success", {"name": "settings", "kind": "configmaps", "uid": made.metadata.uid}))
    status = refused(404, "NotFound", core.read_namespaced_config_map, "settings", ns)
    same(status["message"], 'configmaps "settings" not found')
    core.delete_collection_namespaced_config_map(ns, label_selector="tier=back")
    same(core.list_namespaced_config_map(ns, label_selector="tier").items, [])


@scenario
def core_kinds(room):
    """One object of each usual kind, through the client's own types, which check what comes back."""
    core, ns = room.core, room.namespace
    meta = client.V1ObjectMeta

    secret = core.create_namespaced_secret(
        ns, client.V1Secret(metadata=meta(name="pass"), string_data={"password": "hunter2"})
    )
    same((secret.type, secret.data, secret.string_data), ("Opaque", {"password": "aHVudGVyMg=="}, None))

    service = core.create_namespaced_service(
        ns,
        client.V1Service(
            metadata=meta(name="web"),
            spec=client.V1ServiceSpec(selector={"app": "web"}, ports=[client.V1ServicePort(port=80, target_port="http")]),
        ),
    )
    port = service.spec.ports[0]
    same((service.spec.type, port.protocol, port.target_port), ("ClusterIP", "TCP", "http"))
    assert service.spec.cluster_ip.startswith("10.96.")
    same((service.spec.cluster_ips, service.spec.ip_family_policy), ([service.spec.cluster_ip], "SingleStack"))

    template = client.V1PodTemplateSpec(
        metadata=meta(labels={"app": "idle"}),
        spec=client.V1PodSpec(containers=[client.V1Container(name="c", image=IMAGE)]),
    )
    selector = client.V1LabelSelector(match_labels={"app": "idle"})
    deployment = room.apps.create_namespaced_deployment(
        ns,
        client.V1Deployment(
            metadata=meta(name="idle"), spec=client.V1DeploymentSpec(replicas=0, selector=selector, template=template)
        ),
    )
    same(deployment.spec.strategy.rolling_update.max_surge, "25%")
    same((deployment.spec.revision_history_limit, deployment.metadata.generation), (10, 1))
    daemons = room.apps.create_namespaced_daemon_set(
        ns,
        client.V1DaemonSet(
            metadata=meta(name="idle"),
            spec=client.V1DaemonSetSpec(
                selector=selector,
                template=client.V1PodTemplateSpec(
                    metadata=meta(labels={"app": "idle"}),
                    spec=client.V1PodSpec(
                        containers=[client.V1Container(name="c", image=IMAGE)], node_selector={"no": "where"}
                    ),
                ),
            ),
        ),
    )
    same(daemons.spec.update_strategy.rolling_update.max_unavailable, 1)
    sets = room.apps.create_namespaced_stateful_set(
        ns,
        client.V1StatefulSet(
            metadata=meta(name="idle"),
            spec=client.V1StatefulSetSpec(replicas=0, service_name="web", selector=selector, template=template),
        ),
    )
    same((sets.spec.pod_management_policy, sets.spec.update_strategy.type), ("OrderedReady", "RollingUpdate"))

    job_template = client.V1PodTemplateSpec(
        spec=client.V1PodSpec(containers=[client.V1Container(name="c", image=IMAGE)], restart_policy="Never")
    )
    job = room.batch.create_namespaced_job(
        ns, client.V1Job(metadata=meta(name="later"), spec=client.V1JobSpec(suspend=True, template=job_template))
    )
    same((job.spec.completions, job.spec.parallelism, job.spec.backoff_limit), (1, 1, 6))
    cron = room.batch.create_namespaced_cron_job(
        ns,
        client.V1CronJob(
            metadata=meta(name="nightly"),
            spec=client.V1CronJobSpec(
                schedule="0 3 * * *",
                suspend=True,
                job_template=client.V1JobTemplateSpec(spec=client.V1JobSpec(template=job_template)),
            ),
        ),
    )
    same((cron.spec.concurrency_policy, cron.spec.successful_jobs_history_limit), ("Allow", 3))

    rbac = client.RbacAuthorizationV1Api(room.api)
    role = rbac.create_namespaced_role(
        ns,
        client.V1Role(
            metadata=meta(name="reader"), rules=[client.V1PolicyRule(api_groups=[""], resources=["pods"], verbs=["get"])]
        ),
    )
    same(role.rules[0].resources, ["pods"])
    account = core.create_namespaced_service_account(ns, client.V1ServiceAccount(metadata=meta(name="robot")))
    binding = rbac.create_namespaced_role_binding(
        ns,
        client.V1RoleBinding(
            metadata=meta(name="robot"),
            role_ref=client.V1RoleRef(api_group="rbac.authorization.k8s.io", kind="Role", name="reader"),
            subjects=[client.RbacV1Subject(kind="ServiceAccount", name=account.metadata.name, namespace=ns)],
        ),
    )
    same(binding.role_ref.name, "reader")

    # A token of that account may do what the role says and nothing else.
    token = core.create_namespaced_service_account_token(
        "robot", ns, client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=600))
    )
    settings = client.Configuration.get_default_copy()
    settings.cert_file = settings.key_file = None
    settings.api_key["authorization"] = "Bearer " + token.status.token
    robot = client.CoreV1Api(client.ApiClient(settings))
    same(refused(404, "NotFound", robot.read_namespaced_pod, "none", ns)["details"]["kind"], "pods")
    status = refused(403, "Forbidden", robot.list_namespaced_secret, ns)
    same(
        status["message"],
        f'secrets is forbidden: User "system:serviceaccount:{ns}:robot" cannot list resource "secrets" '
        f'in API group "" in the namespace "{ns}"',
    )
    me = client.AuthenticationV1Api(robot.api_client).create_self_subject_review(client.V1SelfSubjectReview())
    same(me.status.user_info.username, f"system:serviceaccount:{ns}:robot")
    may = client.AuthorizationV1Api(robot.api_client).create_self_subject_access_review(
        client.V1SelfSubjectAccessReview(
            spec=client.V1SelfSubjectAccessReviewSpec(
                resource_attributes=client.V1ResourceAttributes(namespace=ns, verb="get", resource="pods")
            )
        )
    )
    same(may.status.allowed, True)

    budget = client.PolicyV1Api(room.api).create_namespaced_pod_disruption_budget(
        ns,
        client.V1PodDisruptionBudget(
            metadata=meta(name="idle"), spec=client.V1PodDisruptionBudgetSpec(min_available=1, selector=selector)
        ),
    )
    same(budget.spec.min_available, 1)
    quota = core.create_namespaced_resource_quota(
        ns, client.V1ResourceQuota(metadata=meta(name="few"), spec=client.V1ResourceQuotaSpec(hard={"configmaps": "5"}))
    )
    same(quota.spec.hard, {"configmaps": "5"})
    ingress = client.NetworkingV1Api(room.api).create_namespaced_ingress(
        ns,
        client.V1Ingress(
            metadata=meta(name="front"),
            spec=client.V1IngressSpec(
                default_backend=client.V1IngressBackend(
                    service=client.V1IngressServiceBackend(name="web", port=client.V1ServiceBackendPort(number=80))
                )
            ),
        ),
    )
    same(ingress.spec.default_backend.service.port.number, 80)
    scaler = client.AutoscalingV2Api(room.api).create_namespaced_horizontal_pod_autoscaler(
        ns,
        client.V2HorizontalPodAutoscaler(
            metadata=meta(name="idle"),
            spec=client.V2HorizontalPodAutoscalerSpec(
                max_replicas=3,
                scale_target_ref=client.V2CrossVersionObjectReference(
                    api_version="apps/v1", kind="Deployment", name="idle"
                ),
            ),
        ),
    )
    same((scaler.spec.min_replicas, scaler.spec.metrics[0].resource.target.average_utilization), (1, 80))

    node = core.list_node().items[0]
    same([c.status for c in node.status.conditions if c.type == "Ready"], ["True"])
    assert "cpu" in node.status.allocatable
    code = client.VersionApi(room.api).get_code()
    same((code.major, code.minor.rstrip("+")), ("1", "37"))
    groups = {g.name for g in client.ApisApi(room.api).get_api_versions().groups}
    assert {"apps", "batch", "rbac.authorization.k8s.io", "coordination.k8s.io"} <= groups, groups


@scenario
def kinds_of_patches(room):
    """Every patch type on one object, by the client's own choice and by the caller's."""
    core, ns = room.core, room.namespace
    room.config_map("c", None, a="1", b="2")
    patch = core.patch_namespaced_config_map
    same(patch("c", ns, [{"op": "replace", "path": "/data/a", "value": "one"}]).data, {"a": "one", "b": "2"})
    same(patch("c", ns, {"data": {"b": None, "c": "3"}}, _content_type="application/merge-patch+json").data, {"a": "one", "c": "3"})
    status = refused(
        422, "Invalid", patch, "c", ns, [{"op": "test", "path": "/data/a", "value": "two"}], _content_type="application/json-patch+json"
    )
    same(status["message"], "the server rejected our request due to an error in our request")

    template = {
        "metadata": {"labels": {"app": "p"}},
        "spec": {"containers": [{"name": "one", "image": "one"}, {"name": "two", "image": "two"}]},
    }
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "p"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "p"}}, "template": template},
    }
    room.apps.create_namespaced_deployment(ns, body)
    change = {"spec": {"template": {"spec": {"containers": [{"name": "two", "image": "new"}]}}}}
    by_key = room.apps.patch_namespaced_deployment("p", ns, change, _content_type="application/strategic-merge-patch+json")
    same({c.name: c.image for c in by_key.spec.template.spec.containers}, {"one": "one", "two": "new"})
    whole = room.apps.patch_namespaced_deployment("p", ns, change, _content_type="application/merge-patch+json")
    same([c.name for c in whole.spec.template.spec.containers], ["two"])


@scenario
def applying(room):
    """Server-side apply: ownership, conflicts, force, giving up a field."""
    core, ns = room.core, room.namespace

    def apply(manager, data, **kwargs):
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}, "data": data}
        return core.patch_namespaced_config_map(
            "shared", ns, body, field_manager=manager, _content_type="application/apply-patch+yaml", **kwargs
        )

    first = apply("one", {"a": "1", "b": "1"})
    same([(m.manager, m.operation) for m in first.metadata.managed_fields], [("one", "Apply")])
    status = refused(409, "Conflict", apply, "two", {"a": "2"})
    same(status["message"], 'Apply failed with 1 conflict: conflict with "one": .data.a')
    same(
        status["details"]["causes"],
        [{"reason": "FieldManagerConflict", "message": 'conflict with "one"', "field": ".data.a"}],
    )
    same(apply("two", {"a": "2"}, force=True).data, {"a": "2", "b": "1"})
    same(apply("one", {}).data, {"a": "2"})
    again = apply("two", {"a": "2"})
    same(again.metadata.resource_version, apply("two", {"a": "2"}).metadata.resource_version)
    status = refused(
        422,
        "Invalid",
        core.patch_namespaced_config_map,
        "shared",
        ns,
        {"data": {}},
        force=True,
        _content_type="application/merge-patch+json",
    )
    same(
        status["message"],
        'PatchOptions.meta.k8s.io "" is invalid: force: Forbidden: may not be specified for non-apply patch',
    )

    objects = dynamic_client(room).resources.get(api_version="v1", kind="ConfigMap")
    applied = objects.server_side_apply(
        body={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}, "data": {"z": "26"}},
        namespace=ns,
        field_manager="three",
    )
    same(applied.data.to_dict(), {"a": "2", "z": "26"})


def dynamic_client(room):
    """A dynamic client with a discovery cache of its own."""
    directory = tempfile.mkdtemp(prefix="gantry-discovery-")
    return dynamic.DynamicClient(room.api, cache_file=os.path.join(directory, "cache.json"))


@scenario
def by_discovery(room):
    """The dynamic client: kinds are found by discovery, custom ones too."""
    ns = room.namespace
    definitions = client.ApiextensionsV1Api(room.api)
    definitions.create_custom_resource_definition(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "boats.harbour.example"},
            "spec": {
                "group": "harbour.example",
                "scope": "Namespaced",
                "names": {"plural": "boats", "singular": "boat", "kind": "Boat", "shortNames": ["bt"]},
                "versions": [
                    {
                        "name": "v1",
                        "served": True,
                        "storage": True,
                        "subresources": {
                            "status": {},
                            "scale": {"specReplicasPath": ".spec.crew", "statusReplicasPath": ".status.crew"},
                        },
                        "schema": {
                            "openAPIV3Schema": {
                                "type": "object",
                                "properties": {
                                    "spec": {
                                        "type": "object",
                                        "required": ["crew"],
                                        "properties": {"crew": {"type": "integer", "minimum": 1}},
                                    },
                                    "status": {"type": "object", "properties": {"crew": {"type": "integer"}}},
                                },
                            }
                        },
                    }
                ],
            },
        }
    )

    def established():
        found = definitions.read_custom_resource_definition("boats.harbour.example")
        conditions = {c.type: c.status for c in (found.status and found.status.conditions) or []}
        return conditions.get("Established") == "True"

    eventually("the definition established", established)

    def discovered():
        try:
            return dynamic_client(room).resources.get(api_version="harbour.example/v1", kind="Boat")
        except dynamic_exceptions.ResourceNotFoundError:
            return None

    boats = eventually("boats in discovery", discovered)
    same((boats.name, boats.namespaced, boats.short_names), ("boats", True, ["bt"]))
    boat = {"apiVersion": "harbour.example/v1", "kind": "Boat", "metadata": {"name": "ann"}, "spec": {"crew": 2}}
    made = boats.create(body=boat, namespace=ns)
    same((made.metadata.name, made.spec.crew, made.metadata.generation), ("ann", 2, 1))
    try:
        boats.create(body={**boat, "metadata": {"name": "bob"}, "spec": {"crew": 0}}, namespace=ns)
        raise AssertionError("a boat without a crew")
    except dynamic_exceptions.UnprocessibleEntityError as e:
        same(
            e.summary(),
            'Boat.harbour.example "bob" is invalid: spec.crew: Invalid value: 0: spec.crew in body should be greater than '
            "or equal to 1",
        )
    changed = boats.patch(
        body={"metadata": {"name": "ann"}, "spec": {"crew": 3}}, namespace=ns, content_type="application/merge-patch+json"
    )
    same((changed.spec.crew, changed.metadata.generation), (3, 2))
    made = boats.status.patch(
        body={"metadata": {"name": "ann"}, "status": {"crew": 3}, "spec": {"crew": 9}},
        namespace=ns,
        content_type="application/merge-patch+json",
    )
    same((made.spec.crew, made.status.crew), (3, 3))
    events = []
    for event in boats.watch(namespace=ns, resource_version=0, timeout=1):
        events.append((event["type"], event["object"].metadata.name))
    same(events, [("ADDED", "ann")])

    custom = client.CustomObjectsApi(room.api)
    scale = custom.get_namespaced_custom_object_scale("harbour.example", "v1", ns, "boats", "ann")
    same((scale["kind"], scale["spec"], scale["status"]), ("Scale", {"replicas": 3}, {"replicas": 3}))
    listed = custom.list_namespaced_custom_object("harbour.example", "v1", ns, "boats")
    same((listed["kind"], [b["metadata"]["name"] for b in listed["items"]]), ("BoatList", ["ann"]))
    boats.delete(name="ann", namespace=ns)
    try:
        boats.get(name="ann", namespace=ns)
        raise AssertionError("the boat is still there")
    except dynamic_exceptions.NotFoundError as e:
        same(e.summary(), 'boats.harbour.example "ann" not found')
    definitions.delete_custom_resource_definition("boats.harbour.example")

    # Built-in kinds, by kind and by plural name.
    pods = dynamic_client(room).resources.get(kind="Pod", api_version="v1")
    same((pods.name, pods.singular_name, "po" in pods.short_names), ("pods", "pod", True))
    same(pods.get(namespace=ns).items, [])
    same(pods.get(namespace=ns).kind, "PodList")


@scenario
def watching(room):
    """A watch from a list's version sees every change once, in order, and one that is resumed misses none."""
    core, ns = room.core, room.namespace
    eventually("the root certificates' config map", lambda: core.list_namespaced_config_map(ns).items)
    start = core.list_namespaced_config_map(ns, label_selector="watched").metadata.resource_version
    room.config_map("w", {"watched": "yes"}, step="0")
    room.config_map("unseen", None, step="0")
    for step in range(1, 4):
        core.patch_namespaced_config_map("w", ns, {"data": {"step": str(step)}})
    core.delete_namespaced_config_map("w", ns)
    kinds = []
    versions = []
    watcher = watch.Watch()
    arguments = {"namespace": ns, "label_selector": "watched", "timeout_seconds": 60}
    for event in watcher.stream(core.list_namespaced_config_map, resource_version=start, **arguments):
        assert isinstance(event["object"], client.V1ConfigMap)
        kinds.append((event["type"], event["object"].data["step"]))
        versions.append(int(event["object"].metadata.resource_version))
        if event["type"] == "DELETED":
            watcher.stop()
    wanted = [("ADDED", "0"), ("MODIFIED", "1"), ("MODIFIED", "2"), ("MODIFIED", "3"), ("DELETED", "3")]
    same(kinds, wanted)
    same(versions, sorted(set(versions)), "versions rise")

    # From the middle: what came after and nothing of before.
    resumed = []
    watcher = watch.Watch()
    for event in watcher.stream(core.list_namespaced_config_map, resource_version=str(versions[1]), **arguments):
        resumed.append((event["type"], event["object"].data["step"]))
        if event["type"] == "DELETED":
            watcher.stop()
    same(resumed, wanted[2:])

    # The server ends a watch in time, with no error.
    quiet = list(watch.Watch().stream(core.list_namespaced_secret, ns, timeout_seconds=1))
    same(quiet, [])

    # A version nobody has yet.
    status = refused(
        504,
        "Timeout",
        core.list_namespaced_config_map,
        ns,
        resource_version=str(versions[-1] + 1_000_000),
        resource_version_match="NotOlderThan",
    )
    assert status["message"].startswith("Timeout: Too large resource version: "), status
    same(status["details"]["causes"], [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}])
    same(status["details"]["retryAfterSeconds"], 1)

    # A bookmark ends the initial events.
    room.config_map("x", {"watched": "yes"})
    seen = []
    watcher = watch.Watch()
    for event in watcher.stream(
        core.list_namespaced_config_map,
        send_initial_events=True,
        resource_version_match="NotOlderThan",
        allow_watch_bookmarks=True,
        **arguments,
    ):
        seen.append(event["type"])
        if event["type"] == "BOOKMARK":
            note = event["raw_object"]["metadata"]["annotations"]
            same(note, {"k8s.io/initial-events-end": "true"})
            watcher.stop()
    same(seen, ["ADDED", "BOOKMARK"])


@scenario
def too_old(room):
    """A watch from a version that is no longer known is told 410, and so is a page of a list."""
    core, ns = room.core, room.namespace
    first = room.config_map("large", None, filling="x" * 40_000)
    for step in range(150):
        core.patch_namespaced_config_map("large", ns, {"metadata": {"annotations": {"step": str(step)}}})
    try:
        events = watch.Watch().stream(
            core.list_namespaced_config_map, ns, resource_version=first.metadata.resource_version, timeout_seconds=5
        )
        raise AssertionError(f"the watch began: {next(events)['type']}")
    except ApiException as e:
        same(e.status, 410)
        assert e.reason.startswith("Expired: too old resource version: " + first.metadata.resource_version + " ("), e.reason

    # A token as if the first page had been read when the cluster was new.
    page = core.list_namespaced_config_map(ns, limit=1)
    same([c.metadata.name for c in page.items], ["kube-root-ca.crt"])
    token = page.metadata._continue
    token = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    token["rv"] = 1
    token_of_another_time = base64.urlsafe_b64encode(json.dumps(token).encode()).decode().rstrip("=")
    status = refused(410, "Expired", core.list_namespaced_config_map, ns, limit=1, _continue=token_of_another_time)
    assert status["message"].startswith("The provided continue parameter is too old to display a consistent list result."), status
    assert status["metadata"]["continue"]
    rest = core.list_namespaced_config_map(ns, limit=500, _continue=status["metadata"]["continue"])
    same([c.metadata.name for c in rest.items], ["large"])


@scenario
def informing(room):
    """The client's informer: its cache follows the server, also over a relist."""
    core, ns = room.core, room.namespace
    room.config_map("a", {"kept": "yes"}, value="1")
    lock = threading.Lock()
    seen = []

    def note(kind):
        def handler(event):
            with lock:
                seen.append((kind, event.metadata.name, (event.data or {}).get("value")))

        return handler

    shared = informer.SharedInformer(core.list_namespaced_config_map, namespace=ns, label_selector="kept", resync_period=2)
    errors = []
    for kind in ("ADDED", "MODIFIED", "DELETED"):
        shared.add_event_handler(kind, note(kind))
    shared.add_event_handler("ERROR", errors.append)
    shared.start()

    def has(*event):
        def check():
            with lock:
                return event in seen

        return check

    eventually("a listed", has("ADDED", "a", "1"))
    room.config_map("b", {"kept": "yes"}, value="1")
    eventually("b added", has("ADDED", "b", "1"))
    core.patch_namespaced_config_map("b", ns, {"data": {"value": "2"}})
    eventually("b changed", has("MODIFIED", "b", "2"))
    eventually("a resynced", has("MODIFIED", "a", "1"))
    core.delete_namespaced_config_map("a", ns)
    eventually("a deleted", has("DELETED", "a", "1"))
    same([o.metadata.name for o in shared.cache.list()], ["b"])
    # Out of the selector is out of the cache.
    core.patch_namespaced_config_map("b", ns, {"metadata": {"labels": {"kept": None}}}, _content_type="application/merge-patch+json")
    eventually("b left", lambda: not shared.cache.list())
    same(errors, [])
    shared.stop()


@scenario
def inside_a_pod(room):
    """exec with standard input, output, errors and exit codes; logs, followed and cut; port-forward."""
    core, ns = room.core, room.namespace
    room.pod("shell", image=SHELL, command=["sh", "-c", "echo ready; for i in 1 2 3; do echo line $i; done; exec sleep 3600"])
    connect = core.connect_get_namespaced_pod_exec

    def execute(command, **kwargs):
        kwargs = {"stderr": True, "stdin": False, "stdout": True, "tty": False, "_preload_content": False, **kwargs}
        return stream.stream(connect, "shell", ns, command=command, **kwargs)

    text = stream.stream(
        connect, "shell", ns, command=["echo", "hello"], stderr=True, stdin=False, stdout=True, tty=False
    )
    same(text, "hello\n")

    process = execute(["sh", "-c", "echo out; echo err >&2; exit 7"])
    process.run_forever(timeout=60)
    same((process.read_stdout(timeout=1), process.read_stderr(timeout=1)), ("out\n", "err\n"))
    same(process.returncode, 7)

    process = execute(["cat"], stdin=True)
    process.write_stdin("over and out\n")
    same(process.readline_stdout(timeout=60), "over and out")
    process.write_stdin("twice\n")
    same(process.readline_stdout(timeout=60), "twice")
    process.close()

    process = execute(["sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x"])
    process.run_forever(timeout=60)
    same((len(process.read_stdout()), process.returncode), (300000, 0))

    process = execute(["sh", "-c", "read line; echo got $line; exit 0"], stdin=True, tty=True)
    process.write_stdin("something\n")
    process.run_forever(timeout=60)
    printed = process.read_stdout()
    assert "got something\r\n" in printed, printed
    same(process.returncode, 0)

    process = execute(["no-such-program"])
    process.run_forever(timeout=60)
    failure = yaml.safe_load(process.read_channel(3))
    same((failure["status"], failure["reason"]), ("Failure", "InternalError"))
    assert "no-such-program" in failure["message"], failure

    try:
        execute(["true"], container="absent")
        raise AssertionError("exec into a container that is not there")
    except ApiException as e:
        assert "400 Bad Request" in e.reason and "container absent is not valid for pod shell" in e.reason, e.reason

    # Logs.
    logs = core.read_namespaced_pod_log
    wanted = "ready\nline 1\nline 2\nline 3\n"
    eventually("the log", lambda: logs("shell", ns) == wanted)
    same(logs("shell", ns, tail_lines=1), "line 3\n")
    same(logs("shell", ns, limit_bytes=5), "ready")
    stamped = logs("shell", ns, timestamps=True, tail_lines=1)
    stamp, line = stamped.split(" ", 1)
    same(line, "line 3\n")
    datetime.datetime.fromisoformat(stamp[:19])
    status = refused(400, "BadRequest", logs, "shell", ns, container="absent")
    same(status["message"], "container absent is not valid for pod shell")
    followed = []
    follower = watch.Watch()
    for line in follower.stream(logs, "shell", ns):
        followed.append(line)
        if len(followed) == 4:
            follower.stop()
    same(followed, wanted.splitlines())

    # A pod that ends: its log ends with it.
    room.core.create_namespaced_pod(
        ns,
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "short"},
            "spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "c", "image": SHELL, "command": ["sh", "-c", "echo one; sleep 1; echo two"]}],
            },
        },
    )
    eventually("short ended", lambda: core.read_namespaced_pod("short", ns).status.phase == "Succeeded")
    same(list(watch.Watch().stream(logs, "short", ns)), ["one", "two"])


@scenario
def forwarding(room):
    """Port-forward as sockets, and the pod's own proxy."""
    core, ns = room.core, room.namespace
    room.pod("web", ["serve", "--port", "8080"])
    forward = stream.portforward(core.connect_get_namespaced_pod_portforward, "web", ns, ports="8080")
    link = forward.socket(8080)
    link.settimeout(60)
    link.sendall(b"GET /hostname HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
    answer = b""
    while True:
        part = link.recv(65536)
        if not part:
            break
        answer += part
    assert answer.startswith(b"HTTP/1.1 200") and b"web" in answer.split(b"\r\n\r\n", 1)[1], answer
    same(forward.error(8080), None)

    # Nothing listens there: the port's error channel says so.
    forward = stream.portforward(core.connect_get_namespaced_pod_portforward, "web", ns, ports="8081")
    link = forward.socket(8081)
    link.settimeout(60)
    same(link.recv(1), b"")
    eventually("the error", lambda: forward.error(8081))
    assert "connection refused" in forward.error(8081).lower(), forward.error(8081)

    # A server that speaks first is heard.
    probe = client.V1Probe(tcp_socket=client.V1TCPSocketAction(port=9000), period_seconds=1)
    room.pod("polite", image=SHELL, command=["nc", "-ll", "-p", "9000", "-e", "echo", "welcome"], probe=probe)
    forward = stream.portforward(core.connect_get_namespaced_pod_portforward, "polite", ns, ports="9000")
    link = forward.socket(9000)
    link.settimeout(60)
    same(link.recv(100), b"welcome\n")

    proxied = core.connect_get_namespaced_pod_proxy_with_path("web:8080", ns, "hostname")
    same(proxied.strip(), "web")


@scenario
def scale_and_status(room):
    """Subresources: scale, status, eviction, binding's refusal, the pod's ephemeral containers."""
    core, apps, ns = room.core, room.apps, room.namespace
    eventually("the default service account", room.account)
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "s"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "s"}},
            "template": {
                "metadata": {"labels": {"app": "s"}},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": IMAGE, "args": ["serve", "--port", "8080"]}]},
            },
        },
    }
    apps.create_namespaced_deployment(ns, body)
    eventually("one available", lambda: apps.read_namespaced_deployment_status("s", ns).status.available_replicas == 1)
    scale = apps.read_namespaced_deployment_scale("s", ns)
    same((scale.spec.replicas, scale.status.selector), (1, "app=s"))
    scale.spec.replicas = 2
    same(apps.replace_namespaced_deployment_scale("s", ns, scale).spec.replicas, 2)
    eventually("two available", lambda: apps.read_namespaced_deployment_status("s", ns).status.available_replicas == 2)
    same(apps.patch_namespaced_deployment_scale("s", ns, {"spec": {"replicas": 1}}).spec.replicas, 1)
    status = refused(
        422, "Invalid", apps.patch_namespaced_deployment_scale, "s", ns, {"spec": {"replicas": -1}}
    )
    same(
        status["message"],
        'Scale.autoscaling "s" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0',
    )

    # Status is written through its own door only.
    condition = {"type": "Tested", "status": "True", "reason": "ByHand", "message": "so it says"}
    marked = apps.patch_namespaced_deployment_status("s", ns, {"status": {"conditions": [condition]}, "spec": {"replicas": 9}})
    same(marked.spec.replicas, 1)
    assert any(c.type == "Tested" and c.reason == "ByHand" for c in marked.status.conditions), marked.status
    unmarked = apps.patch_namespaced_deployment("s", ns, {"status": {"replicas": 99}})
    assert unmarked.status.replicas != 99

    pods = eventually("one pod", lambda: [p for p in core.list_namespaced_pod(ns, label_selector="app=s").items if not p.metadata.deletion_timestamp])
    name = pods[0].metadata.name
    evicted = core.create_namespaced_pod_eviction(
        name, ns, client.V1Eviction(metadata=client.V1ObjectMeta(name=name), delete_options=client.V1DeleteOptions(grace_period_seconds=0))
    )
    assert evicted is not None
    eventually("another pod", lambda: name not in [p.metadata.name for p in core.list_namespaced_pod(ns, label_selector="app=s").items])

    # Deleting in the foreground keeps the owner until what it owns is gone.
    apps.delete_namespaced_deployment("s", ns, propagation_policy="Foreground")

    def all_gone():
        try:
            apps.read_namespaced_deployment("s", ns)
            return False
        except ApiException as e:
            same(e.status, 404)
            return True

    eventually("the deployment gone", all_gone)
    same([r.metadata.name for r in apps.list_namespaced_replica_set(ns).items], [])


@scenario
def electing(room):
    """Leader election: one leads, and when it lets the lock run out, the other does; by Lease and by ConfigMap."""
    lock_and_take_over(room, LeaseLock, "lease")
    lock_and_take_over(room, ConfigMapLock, "map")
    lease = client.CoordinationV1Api(room.api).read_namespaced_lease("lease", room.namespace)
    same((lease.spec.holder_identity, lease.spec.lease_duration_seconds), ("second", 3))
    assert lease.spec.renew_time >= lease.spec.acquire_time


def lock_and_take_over(room, lock, name):
    led = []
    stop = threading.Event()

    def candidate(identity):
        mine = lock(name, room.namespace, identity)

        def lead():
            led.append(identity)

        election = electionconfig.Config(
            mine, lease_duration=3, renew_deadline=2, retry_period=1, onstarted_leading=lead, onstopped_leading=lambda: None
        )
        return leaderelection.LeaderElection(election)

    first = candidate("first")
    assert first.try_acquire_or_renew(), "the first candidate makes the lock"
    second = candidate("second")
    assert not second.try_acquire_or_renew(), "the lock is held"
    # A renewal goes through, too, as after every retry period.
    assert first.try_acquire_or_renew()
    # The first stops renewing; the other takes over, and leads.
    thread = threading.Thread(target=second.run, daemon=True)
    thread.start()
    eventually(f"{name}: the second leads", lambda: led == ["second"])
    assert not first.try_acquire_or_renew(), "the lock has another holder"
    stop.set()


@scenario
def from_files(room):
    """What is in files: several documents, a list, and a second time."""
    text = """
apiVersion: v1
kind: ConfigMap
metadata: {name: one}
data: {a: "1"}
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: two}
  spec: {ports: [{port: 1}]}
- apiVersion: batch/v1
  kind: CronJob
  metadata: {name: three}
  spec:
    suspend: true
    schedule: "@daily"
    jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}
"""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        made = utils.create_from_yaml(room.api, file.name, namespace=room.namespace)
        same([o.metadata.name for group in made for o in group], ["one", "two", "three"])
        try:
            utils.create_from_yaml(room.api, file.name, namespace=room.namespace)
            raise AssertionError("made twice")
        except utils.FailToCreateError as e:
            statuses = [json.loads(f.body) for f in e.api_exceptions]
            same([s["reason"] for s in statuses], ["AlreadyExists"] * 3)
            same(statuses[2]["message"], 'cronjobs.batch "three" already exists')


@scenario
def errors(room):
    """The bodies of refusals: code, reason, message, details and causes."""
    core, ns = room.core, room.namespace
    create = core.create_namespaced_config_map
    room.config_map("there")
    status = refused(409, "AlreadyExists", room.config_map, "there")
    same(status["message"], 'configmaps "there" already exists')
    same(status["details"], {"name": "there", "kind": "configmaps"})

    status = refused(422, "Invalid", create, ns, {"metadata": {"name": "Not_Valid"}})
    same(status["details"]["causes"][0]["reason"], "FieldValueInvalid")
    same(status["details"]["causes"][0]["field"], "metadata.name")
    status = refused(404, "NotFound", core.create_namespaced_config_map, "no-such-namespace", {"metadata": {"name": "c"}})
    same(status["message"], 'namespaces "no-such-namespace" not found')
    # What the client's own types would not let through.
    raw = dynamic_client(room).resources.get(api_version="v1", kind="ConfigMap")
    status = refused(
        400,
        "BadRequest",
        raw.create,
        {"metadata": {"name": "c"}, "unknown": 1},
        ns,
        query_params=[("fieldValidation", "Strict")],
    )
    same(
        status["message"],
        'ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "unknown"',
    )
    status = refused(400, "BadRequest", raw.create, {"metadata": {"name": "c"}, "data": "text"}, ns)
    same(
        status["message"],
        'ConfigMap in version "v1" cannot be handled as a ConfigMap: json: cannot unmarshal string into Go struct field '
        "ConfigMap.data of type map[string]string",
    )
    status = refused(400, "BadRequest", create, ns, {"metadata": {"name": "c", "namespace": "elsewhere"}})
    same(status["message"], f"the namespace of the provided object does not match the namespace sent on the request")
    status = refused(400, "BadRequest", core.list_namespaced_config_map, ns, label_selector="a=b=c")
    assert "unable to parse requirement" in status["message"] or "found" in status["message"], status
    status = refused(400, "BadRequest", core.list_namespaced_config_map, ns, field_selector="spec.no=1")
    same(
        status["message"],
        '"spec.no" is not a known field selector: only "metadata.name", "metadata.namespace"',
    )
    status = refused(400, "BadRequest", core.list_namespaced_pod, ns, field_selector="spec.no=1")
    same(status["message"], "field label not supported: spec.no")
    status = refused(400, "BadRequest", room.batch.list_namespaced_job, ns, field_selector="spec.no=1")
    same(status["message"], 'field label "spec.no" not supported for batchv1.Job')
    pod = {"metadata": {"name": "p"}, "spec": {"containers": []}}
    status = refused(422, "Invalid", core.create_namespaced_pod, ns, pod)
    same(status["message"], 'Pod "p" is invalid: spec.containers: Required value')
    same(
        status["details"],
        {
            "name": "p",
            "kind": "Pod",
            "causes": [{"reason": "FieldValueRequired", "message": "Required value", "field": "spec.containers"}],
        },
    )
    status = refused(
        409,
        "Conflict",
        core.delete_namespaced_config_map,
        "there",
        ns,
        body=client.V1DeleteOptions(preconditions=client.V1Preconditions(uid="another")),
    )
    uid = core.read_namespaced_config_map("there", ns).metadata.uid
    same(
        status["message"],
        'Operation cannot be fulfilled on ConfigMap "there": the UID in the precondition (another) does not match the UID '
        f"in record ({uid}). The object might have been deleted and then recreated",
    )
    same(status["details"], {"name": "there", "kind": "ConfigMap"})

    # Somebody unknown.
    settings = client.Configuration.get_default_copy()
    settings.cert_file = settings.key_file = None
    settings.api_key["authorization"] = "Bearer nonsense"
    nobody = client.CoreV1Api(client.ApiClient(settings))
    status = refused(401, "Unauthorized", nobody.list_namespace)
    same(status["message"], "Unauthorized")

    # A path that is not there.
    answer = room.api.call_api(
        *room.api.param_serialize("GET", "/apis/no.such.group/v1/things", auth_settings=["BearerToken"])
    )
    same(answer.status, 404)


def main():
    config.load_kube_config()
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [s for s in SCENARIOS if wanted in s.__name__]
    if not chosen:
        sys.exit(f"no scenario has {wanted!r} in its name")

    def attempt(function):
        begin = time.monotonic()
        try:
            function(Room(function.__name__))
            return f"{function.__name__}: ok in {time.monotonic() - begin:.1f} s", True
        except BaseException:
            return f"{function.__name__}: FAILED\n{traceback.format_exc()}", False

    failed = False
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for line, good in pool.map(attempt, chosen):
            print(line, flush=True)
            failed = failed or not good
    os._exit(1 if failed else 0)


if __name__ == "__main__":
    main()
