// What programs written with the JavaScript client do, against a running cluster.
//
// Usage: KUBECONFIG=FILE node scenarios.mjs [PART-OF-A-NAME]
//
// Every scenario has a namespace of its own; they run side by side. Prints a line for each, the trace of those that fail,
// and exits 1 if one did.

import assert from "node:assert/strict";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { PassThrough } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import * as k8s from "@kubernetes/client-node";

const IMAGE = "gantry.local/self";
const SHELL = "test.local/busybox:1";
const PATIENCE = 90_000;

const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);
const objects = k8s.KubernetesObjectApi.makeApiClient(config);
const as = (type) => k8s.setHeaderOptions("Content-Type", type);

/** The first value of `check` that is not false. */
async function eventually(what, check) {
  const deadline = Date.now() + PATIENCE;
  while (Date.now() < deadline) {
    const value = await check();
    if (value) return value;
    await sleep(100);
  }
  throw new Error(`never: ${what}`);
}

/** The Status of a call that must fail in this way. */
async function refused(code, reason, promise) {
  let value;
  try {
    value = await promise;
  } catch (e) {
    if (!(e instanceof k8s.ApiException)) throw e;
    const status = typeof e.body === "string" ? JSON.parse(e.body) : e.body;
    assert.deepEqual([e.code, status.code, status.reason, status.kind, status.status], [code, code, reason, "Status", "Failure"], e.message);
    return status;
  }
  throw new Error(`was not refused: ${JSON.stringify(value)}`);
}

/** What comes out of a stream, as it grows. */
function collected(stream) {
  const all = { text: "" };
  stream.on("data", (part) => (all.text += part));
  return all;
}

const configMap = (namespace, name, data, labels) =>
  core.createNamespacedConfigMap({ namespace, body: { metadata: { name, labels }, data } });

/** A pod that is Ready. */
async function pod(namespace, name, container) {
  await eventually("the default service account", async () => {
    const accounts = await core.listNamespacedServiceAccount({ namespace });
    return accounts.items.some((a) => a.metadata.name === "default");
  });
  const spec = { terminationGracePeriodSeconds: 0, containers: [{ name: "main", ...container }] };
  await core.createNamespacedPod({ namespace, body: { metadata: { name, labels: { app: name } }, spec } });
  return eventually(`pod ${name} Ready`, async () => {
    const found = await core.readNamespacedPodStatus({ name, namespace });
    return (found.status.conditions ?? []).some((c) => c.type === "Ready" && c.status === "True") && found;
  });
}

const scenarios = {
  async writingAndReading(namespace) {
    const made = await configMap(namespace, "settings", { colour: "green" }, { tier: "front" });
    assert.ok(made.metadata.creationTimestamp instanceof Date && made.metadata.uid);
    const read = await core.readNamespacedConfigMap({ name: "settings", namespace });
    assert.deepEqual(read, made);
    read.data.size = "large";
    const replaced = await core.replaceNamespacedConfigMap({ name: "settings", namespace, body: read });
    assert.deepEqual(replaced.data, { colour: "green", size: "large" });
    const status = await refused(409, "Conflict", core.replaceNamespacedConfigMap({ name: "settings", namespace, body: made }));
    assert.match(status.message, /^Operation cannot be fulfilled on configmaps "settings": the object has been modified; /);

    await configMap(namespace, "other", {}, { tier: "back" });
    const front = await core.listNamespacedConfigMap({ namespace, labelSelector: "tier=front" });
    assert.deepEqual(front.items.map((c) => c.metadata.name), ["settings"]);
    const first = await core.listNamespacedConfigMap({ namespace, labelSelector: "tier", limit: 1 });
    assert.deepEqual([first.items.length, first.metadata.remainingItemCount], [1, undefined]);
    const second = await core.listNamespacedConfigMap({ namespace, labelSelector: "tier", limit: 1, _continue: first.metadata._continue });
    assert.deepEqual([...first.items, ...second.items].map((c) => c.metadata.name), ["other", "settings"]);
    assert.equal(second.metadata._continue, undefined);

    const gone = await core.deleteNamespacedConfigMap({ name: "settings", namespace });
    assert.deepEqual([gone.status, gone.details.kind, gone.details.uid], ["Success", "configmaps", made.metadata.uid]);
    const missing = await refused(404, "NotFound", core.readNamespacedConfigMap({ name: "settings", namespace }));
    assert.deepEqual([missing.message, missing.details], ['configmaps "settings" not found', { name: "settings", kind: "configmaps" }]);

    // Types that the client converts: times with microseconds, numbers or strings, bytes.
    const leases = config.makeApiClient(k8s.CoordinationV1Api);
    const now = new k8s.V1MicroTime();
    const lease = await leases.createNamespacedLease({ namespace, body: { metadata: { name: "l" }, spec: { holderIdentity: "me", renewTime: now } } });
    assert.equal(new Date(lease.spec.renewTime).getTime(), now.getTime());
    const service = await core.createNamespacedService({
      namespace,
      body: { metadata: { name: "s" }, spec: { ports: [{ port: 80, targetPort: "http" }, { name: "b", port: 81, targetPort: 8081 }].map((p, i) => ({ name: `p${i}`, ...p })) } },
    });
    assert.deepEqual(service.spec.ports.map((p) => p.targetPort), ["http", 8081]);
    const secret = await core.createNamespacedSecret({ namespace, body: { metadata: { name: "s" }, stringData: { a: "hunter2" } } });
    assert.equal(Buffer.from(secret.data.a, "base64").toString(), "hunter2");
    const version = await config.makeApiClient(k8s.VersionApi).getCode();
    assert.equal(version.minor.replace("+", ""), "37");
    const health = new k8s.Health(config);
    assert.deepEqual([await health.readyz({}), await health.livez({})], [true, true]);
  },

  async patches(namespace) {
    await configMap(namespace, "c", { a: "1", b: "2" });
    const patch = (body, type) => core.patchNamespacedConfigMap({ name: "c", namespace, body }, type && as(type));
    assert.deepEqual((await patch([{ op: "replace", path: "/data/a", value: "one" }], k8s.PatchStrategy.JsonPatch)).data, { a: "one", b: "2" });
    assert.deepEqual((await patch({ data: { b: null } }, k8s.PatchStrategy.MergePatch)).data, { a: "one" });
    assert.deepEqual((await patch({ data: { c: "3" } }, k8s.PatchStrategy.StrategicMergePatch)).data, { a: "one", c: "3" });
    const failed = await refused(422, "Invalid", patch([{ op: "test", path: "/data/a", value: "x" }], k8s.PatchStrategy.JsonPatch));
    assert.equal(failed.message, "the server rejected our request due to an error in our request");
    const unknown = await refused(415, "UnsupportedMediaType", patch({}, "application/x-unheard-of"));
    assert.match(unknown.message, /^the body of the request was in an unknown format - accepted media types include: application\/json-patch\+json, /);

    // Apply, by kind: the client finds the path by discovery.
    const mine = { apiVersion: "v1", kind: "ConfigMap", metadata: { name: "shared", namespace }, data: { a: "1" } };
    const apply = (object, manager, force) => objects.patch(object, undefined, undefined, manager, force, k8s.PatchStrategy.ServerSideApply);
    const first = await apply(mine, "one");
    assert.deepEqual(first.metadata.managedFields.map((m) => [m.manager, m.operation]), [["one", "Apply"]]);
    const conflict = await refused(409, "Conflict", apply({ ...mine, data: { a: "2" } }, "two"));
    assert.equal(conflict.message, 'Apply failed with 1 conflict: conflict with "one": .data.a');
    assert.deepEqual(conflict.details.causes, [{ reason: "FieldManagerConflict", message: 'conflict with "one"', field: ".data.a" }]);
    const forced = await apply({ ...mine, data: { a: "2" } }, "two", true);
    assert.deepEqual(forced.data, { a: "2" });
  },

  async anyKind(namespace) {
    // What `kubectl apply` does with a file, as the client's documentation has it, and custom kinds.
    const text = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: robot, namespace: ${namespace}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly, namespace: ${namespace}}
spec:
  suspend: true
  schedule: "@daily"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}
`;
    for (const object of k8s.loadAllYaml(text)) {
      const made = await objects.create(object);
      assert.equal(made.metadata.name, object.metadata.name);
      const again = await objects.read(object);
      assert.equal(again.metadata.uid, made.metadata.uid);
      await refused(409, "AlreadyExists", objects.create(object));
    }
    const listed = await objects.list("batch/v1", "CronJob", namespace);
    assert.deepEqual(listed.items.map((c) => c.metadata.name), ["nightly"]);

    const schema = { type: "object", properties: { spec: { type: "object", properties: { seats: { type: "integer" } } } } };
    await config.makeApiClient(k8s.ApiextensionsV1Api).createCustomResourceDefinition({
      body: {
        metadata: { name: "cars.garage.example" },
        spec: {
          group: "garage.example",
          scope: "Namespaced",
          names: { plural: "cars", singular: "car", kind: "Car" },
          versions: [{ name: "v1", served: true, storage: true, schema: { openAPIV3Schema: schema } }],
        },
      },
    });
    const customs = config.makeApiClient(k8s.CustomObjectsApi);
    const where = { group: "garage.example", version: "v1", plural: "cars", namespace };
    const body = { apiVersion: "garage.example/v1", kind: "Car", metadata: { name: "beetle" }, spec: { seats: 4 } };
    const car = await eventually("cars", async () => {
      try {
        return await customs.createNamespacedCustomObject({ ...where, body });
      } catch (e) {
        assert.equal(e.code, 404, e.message);
        return false;
      }
    });
    assert.deepEqual([car.spec.seats, car.metadata.generation], [4, 1]);
    const wrong = { ...body, metadata: { name: "van" }, spec: { seats: "many" } };
    const status = await refused(422, "Invalid", customs.createNamespacedCustomObject({ ...where, body: wrong }));
    assert.equal(status.message, 'Car.garage.example "van" is invalid: spec.seats: Invalid value: "string": spec.seats in body must be of type integer: "string"');
    const fresh = k8s.KubernetesObjectApi.makeApiClient(config);
    const read = await fresh.read({ apiVersion: "garage.example/v1", kind: "Car", metadata: { name: "beetle", namespace } });
    assert.equal(read.spec.seats, 4);
    await fresh.delete({ apiVersion: "garage.example/v1", kind: "Car", metadata: { name: "beetle", namespace } });
    await refused(404, "NotFound", customs.getNamespacedCustomObject({ ...where, name: "beetle" }));
    await config.makeApiClient(k8s.ApiextensionsV1Api).deleteCustomResourceDefinition({ name: "cars.garage.example" });
  },

  async watching(namespace) {
    const start = (await core.listNamespacedConfigMap({ namespace })).metadata.resourceVersion;
    await configMap(namespace, "w", { step: "0" }, { watched: "yes" });
    await core.patchNamespacedConfigMap({ name: "w", namespace, body: { data: { step: "1" } } }, as(k8s.PatchStrategy.MergePatch));
    await core.deleteNamespacedConfigMap({ name: "w", namespace });
    const seen = [];
    const ended = await new Promise((resolve, reject) => {
      const query = { resourceVersion: start, labelSelector: "watched", timeoutSeconds: 3, allowWatchBookmarks: true };
      new k8s.Watch(config)
        .watch(`/api/v1/namespaces/${namespace}/configmaps`, query, (type, object) => {
          if (type !== "BOOKMARK") seen.push([type, object.data.step]);
        }, resolve)
        .catch(reject);
    });
    assert.equal(ended, null, "the server ends a watch without an error");
    assert.deepEqual(seen, [["ADDED", "0"], ["MODIFIED", "1"], ["DELETED", "1"]]);
    const missing = await new Promise((resolve) => {
      new k8s.Watch(config).watch("/api/v1/nosuchthings", {}, () => {}, resolve);
    });
    assert.equal(missing.statusCode, 404);
  },

  async informing(namespace) {
    await configMap(namespace, "a", { value: "1" }, { kept: "yes" });
    const informer = k8s.makeInformer(
      config,
      `/api/v1/namespaces/${namespace}/configmaps`,
      () => core.listNamespacedConfigMap({ namespace, labelSelector: "kept" }),
      "kept",
    );
    const seen = [];
    const errors = [];
    for (const verb of ["add", "update", "delete"]) {
      informer.on(verb, (object) => seen.push(`${verb} ${object.metadata.name} ${object.data.value}`));
    }
    informer.on("error", (e) => errors.push(e));
    await informer.start();
    await eventually("a listed", () => seen.includes("add a 1"));
    await configMap(namespace, "b", { value: "1" }, { kept: "yes" });
    await eventually("b added", () => seen.includes("add b 1"));
    await core.patchNamespacedConfigMap({ name: "b", namespace, body: { data: { value: "2" } } }, as(k8s.PatchStrategy.MergePatch));
    await eventually("b changed", () => seen.includes("update b 2"));
    await core.deleteNamespacedConfigMap({ name: "a", namespace });
    await eventually("a deleted", () => seen.includes("delete a 1"));
    assert.deepEqual(informer.list().map((c) => c.metadata.name), ["b"]);
    assert.equal(informer.get("b", namespace).data.value, "2");
    assert.deepEqual(errors, []);
    await informer.stop();
  },

  async insideAPod(namespace) {
    await pod(namespace, "shell", { image: SHELL, command: ["sh", "-c", "echo ready; exec sleep 3600"] });
    const exec = new k8s.Exec(config);
    const run = (command, stdin, tty = false) =>
      new Promise((resolve, reject) => {
        const [stdout, stderr] = [new PassThrough(), new PassThrough()];
        const [out, err] = [collected(stdout), collected(stderr)];
        exec
          .exec(namespace, "shell", "main", command, stdout, tty ? null : stderr, stdin ?? null, tty, (status) => {
            // The streams' last data is handed out after this.
            setImmediate(() => resolve({ status, out: out.text, err: err.text }));
          })
          .catch(reject);
      });
    const plain = await run(["sh", "-c", "echo out; echo err >&2"]);
    assert.deepEqual([plain.status.status, plain.out, plain.err], ["Success", "out\n", "err\n"]);
    const failed = await run(["sh", "-c", "exit 7"]);
    assert.deepEqual(
      [failed.status.status, failed.status.reason, failed.status.details.causes],
      ["Failure", "NonZeroExitCode", [{ reason: "ExitCode", message: "7" }]],
    );
    assert.match(failed.status.message, /^command terminated with non-zero exit code: /);
    // The end of standard input is told by closing its channel.
    const input = new PassThrough();
    input.end("one\ntwo\n");
    const counted = await run(["wc", "-l"], input);
    assert.deepEqual([counted.status.status, counted.out.trim()], ["Success", "2"]);
    const large = await run(["sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x"]);
    assert.deepEqual([large.status.status, large.out.length], ["Success", 300000]);

    // Attach: what the container prints from now on.
    await pod(namespace, "talker", { image: SHELL, command: ["sh", "-c", "while read line; do echo heard $line; done"], stdin: true });
    const [stdout, stdin] = [new PassThrough(), new PassThrough()];
    const heard = collected(stdout);
    const socket = await new k8s.Attach(config).attach(namespace, "talker", "main", stdout, null, stdin, false);
    stdin.write("you\n");
    await eventually("the answer", () => heard.text === "heard you\n");
    socket.close();

    // Files, by tar over exec.
    const here = fs.mkdtempSync(path.join(os.tmpdir(), "gantry-cp-"));
    await new k8s.Cp(config).cpFromPod(namespace, "shell", "main", "marker", here, "/etc");
    await eventually("the file", () => {
      const file = path.join(here, "marker");
      return fs.existsSync(file) && fs.readFileSync(file, "utf8") === "marker";
    });

    // Logs.
    const logs = new k8s.Log(config);
    assert.equal(await core.readNamespacedPodLog({ name: "shell", namespace }), "ready\n");
    const sink = new PassThrough();
    const log = collected(sink);
    let ended = false;
    sink.on("end", () => (ended = true));
    await logs.log(namespace, "talker", "main", sink, { follow: true });
    await eventually("the followed log", () => log.text === "heard you\n");
    await core.deleteNamespacedPod({ name: "talker", namespace, gracePeriodSeconds: 0 });
    await eventually("the log's end", () => ended);
  },

  async forwarding(namespace) {
    await pod(namespace, "web", { image: IMAGE, args: ["serve", "--port", "8080"] });
    const forward = new k8s.PortForward(config);
    const [input, output, errors] = [new PassThrough(), new PassThrough(), new PassThrough()];
    const answer = collected(output);
    await forward.portForward(namespace, "web", [8080], output, errors, input);
    input.write("GET /hostname HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n");
    await eventually("the answer", () => /^HTTP\/1.1 200 [\s\S]*\r\n\r\n[\s\S]*web/.test(answer.text));

    const [input2, output2, errors2] = [new PassThrough(), new PassThrough(), new PassThrough()];
    const failure = collected(errors2);
    await forward.portForward(namespace, "web", [8081], output2, errors2, input2);
    await eventually("the error", () => /connection refused/i.test(failure.text));
  },

  async scaleAndStatus(namespace) {
    const template = { metadata: { labels: { app: "s" } }, spec: { containers: [{ name: "c", image: IMAGE, args: ["serve", "--port", "8080"] }] } };
    await apps.createNamespacedDeployment({ namespace, body: { metadata: { name: "s" }, spec: { replicas: 0, selector: { matchLabels: { app: "s" } }, template } } });
    // The controller's last write for now is its status.
    await eventually("the controller has seen it", async () => (await apps.readNamespacedDeployment({ name: "s", namespace })).status.conditions?.length > 0);
    const scale = await apps.readNamespacedDeploymentScale({ name: "s", namespace });
    assert.deepEqual([scale.spec.replicas ?? 0, scale.status.selector], [0, "app=s"]);
    scale.spec.replicas = 1;
    assert.equal((await apps.replaceNamespacedDeploymentScale({ name: "s", namespace, body: scale })).spec.replicas, 1);
    await eventually("one available", async () => (await apps.readNamespacedDeploymentStatus({ name: "s", namespace })).status.availableReplicas === 1);
    const status = await refused(
      422,
      "Invalid",
      apps.patchNamespacedDeploymentScale({ name: "s", namespace, body: { spec: { replicas: -1 } } }, as(k8s.PatchStrategy.MergePatch)),
    );
    assert.equal(status.message, 'Scale.autoscaling "s" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0');
    const pods = await core.listNamespacedPod({ namespace, labelSelector: "app=s" });
    const evicted = pods.items[0].metadata.name;
    await core.createNamespacedPodEviction({ name: evicted, namespace, body: { metadata: { name: evicted } } });
    await eventually("another pod", async () => {
      const now = await core.listNamespacedPod({ namespace, labelSelector: "app=s" });
      return now.items.some((p) => p.metadata.name !== evicted);
    });
    const metrics = new k8s.Metrics(config);
    await eventually("the node's usage", async () => {
      try {
        return (await metrics.getNodeMetrics()).items.length === 1;
      } catch (e) {
        // Nothing has been measured yet.
        assert.ok(/404|503/.test(String(e)), String(e));
        return false;
      }
    });
  },
};

const wanted = process.argv[2] ?? "";
const chosen = Object.entries(scenarios).filter(([name]) => name.includes(wanted));
if (chosen.length === 0) throw new Error(`no scenario has ${wanted} in its name`);
let failures = 0;
await Promise.all(
  chosen.map(async ([name, scenario]) => {
    const begin = Date.now();
    const namespace = `js-${name.toLowerCase()}`;
    try {
      await core.createNamespace({ body: { metadata: { name: namespace } } });
      await scenario(namespace);
      console.log(`${name}: ok in ${(Date.now() - begin) / 1000} s`);
    } catch (e) {
      failures += 1;
      console.log(`${name}: FAILED\n${e.stack ?? e}`);
    }
  }),
);
process.exit(failures === 0 ? 0 : 1);
