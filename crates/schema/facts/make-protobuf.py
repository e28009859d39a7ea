#!/usr/bin/env python3
"""Makes protobuf.tsv, the facts of the protobuf encoding of Kubernetes' types.

usage: make-protobuf.py DIRECTORY > protobuf.tsv

DIRECTORY holds bare or plain clones named api, apimachinery, apiextensions-apiserver, kube-aggregator and metrics of the
release served. Numbers and types come from the generated.proto files, names on the JSON side and whether a zero is a
value from the struct tags of the Go types (the protobuf and the JSON name of a field may differ).

Output: a line `P <package> <group> <version>` per package, and behind it per message a line of tab-separated columns, the
name and then `<json name>=<number>:<type>`. A leading `+` marks a message whose fields stand beside it in JSON, a
trailing `!` a field whose zero is a value of its own (a pointer, or one that JSON always shows). Types: `s` string,
`y` bytes, `b` boolean, `i` integer, `f` double, `q` quantity, `p` integer or string, `t` time, `u` micro time, `d` duration,
`r` JSON in bytes, `l` list of strings in a message, `A`/`B`/`S` the three unions of JSON schemas,
`@<message>` of the same package or of the one whose last two words are `@<word>.<word>.<message>`; before them `[`
repeated, `{` map from strings.
"""
import os
import re
import subprocess
import sys

root = sys.argv[1]
WANTED = re.compile(
    r"^(pkg/apis/meta/v1|pkg/runtime|pkg/api/resource|pkg/util/intstr"
    r"|pkg/apis/(apiextensions|apiregistration)/v1|pkg/apis/metrics/v1beta1"
    r"|(admissionregistration|apps|authentication|authorization|autoscaling|batch|certificates|coordination|core"
    r"|discovery|events|flowcontrol|networking|node|policy|rbac|resource|scheduling|storage|storagemigration)/v[12]"
    r"|policy/v1beta1|scheduling/v1alpha3|apidiscovery/v2|apidiscovery/v2beta1)$"
)
SCALARS = {"string": "s", "bytes": "y", "bool": "b", "int32": "i", "int64": "i", "uint32": "i", "uint64": "i", "double": "f"}
META = "k8s.io.apimachinery.pkg.apis.meta.v1."
SPECIAL = {
    "k8s.io.apimachinery.pkg.api.resource.Quantity": "q",
    "k8s.io.apimachinery.pkg.util.intstr.IntOrString": "p",
    META + "Time": "t",
    META + "MicroTime": "u",
    META + "Duration": "d",
    META + "FieldsV1": "r",
    META + "Verbs": "l",
    "k8s.io.apimachinery.pkg.runtime.RawExtension": "r",
}
APIEXTENSIONS = "k8s.io.apiextensions_apiserver.pkg.apis.apiextensions.v1."
SPECIAL |= {APIEXTENSIONS + "JSON": "r", APIEXTENSIONS + "JSONSchemaPropsOrArray": "A"}
SPECIAL |= {APIEXTENSIONS + "JSONSchemaPropsOrBool": "B", APIEXTENSIONS + "JSONSchemaPropsOrStringArray": "S"}
MAIN = {"pkg/runtime", "pkg/api/resource", "pkg/util/intstr"}


def git(repository, *arguments):
    directory = os.path.join(root, repository)
    return subprocess.run(["git", "-C", directory, *arguments], capture_output=True, text=True, check=True).stdout


def go_fields(sources):
    """struct -> protobuf number -> (JSON name, inline, zero is a value)"""
    out, current = {}, None
    tags = re.compile(r'^\s+(.*?)\s*`.*?json:"([^"]*)".*?protobuf:"[a-z0-9]+,(\d+),')
    for line in sources.splitlines():
        if found := re.match(r"^type (\w+) struct", line):
            current = out.setdefault(found[1], {})
        elif line.startswith("}"):
            current = None
        elif current is not None and "protobuf:" in line and "json:" in line:
            kind, json, number = tags.match(line).groups()
            # `Name Type`, or only the type where it is embedded.
            kind = kind.split(None, 1)[-1]
            parts = json.split(",")
            inline = not parts[0]
            significant = kind.startswith("*") or not {"omitempty", "omitzero"} & set(parts[1:])
            current[int(number)] = (parts[0], inline, significant)
    return out


messages, packages = {}, []
for repository in ["apimachinery", "api", "apiextensions-apiserver", "kube-aggregator", "metrics"]:
    files = git(repository, "ls-tree", "-r", "--name-only", "HEAD").splitlines()
    for file in files:
        directory = os.path.dirname(file)
        if os.path.basename(file) != "generated.proto" or not WANTED.match(directory):
            continue
        text = re.sub(r"//.*", "", git(repository, "show", "HEAD:" + file))
        package = re.search(r"^package (\S+);", text, re.M)[1]
        beside = [f for f in files if os.path.dirname(f) == directory and f.endswith(".go")]
        sources = [f for f in beside if not f.endswith("_test.go") and "generated" not in os.path.basename(f)]
        go = "\n".join(git(repository, "show", "HEAD:" + f) for f in sources)
        group = re.search(r'GroupName\s*=\s*"([^"]*)"', go)
        version = directory.rsplit("/", 1)[1]
        structs = go_fields(go)
        packages.append((package, "" if group is None else group[1], "" if directory in MAIN else version))
        for name, body in re.findall(r"^message (\w+) \{(.*?)^\}", text, re.M | re.S):
            fields = re.findall(r"(optional|repeated|map<string, [^>]+>)\s+(?:([\w.]+)\s+)?(\w+) = (\d+);", body)
            messages[f"{package}.{name}"] = (package, name, fields, structs.get(name, {}))


def code(kind, package):
    if kind in SCALARS:
        return SCALARS[kind]
    kind = kind[1:] if kind.startswith(".") else f"{package}.{kind}"
    if kind in SPECIAL:
        return SPECIAL[kind]
    _, _, fields, _ = messages[kind]
    if [f[:3] for f in fields] == [("repeated", "string", "items")]:
        return "l"
    owner, name, _, _ = messages[kind]
    return "@" + (name if owner == package else ".".join(owner.split(".")[-2:]) + "." + name)


for package, group, version in packages:
    print("\t".join(["P", package, group, version]))
    for name in sorted(n for n, m in messages.items() if m[0] == package):
        _, short, fields, struct = messages[name]
        if name in SPECIAL:
            continue
        columns = []
        for label, kind, proto_name, number in fields:
            json, inline, significant = struct.get(int(number), (proto_name, False, False))
            if label.startswith("map"):
                shape = "{" + code(label[len("map<string, "):-1], package)
            else:
                shape = ("[" if label == "repeated" else "") + code(kind, package)
            columns.append(f"{'+' if inline else ''}{json or proto_name}={number}:{shape}{'!' if significant else ''}")
            if int(number) not in struct and struct:
                print(f"no struct tag: {name}.{proto_name}", file=sys.stderr)
        print("\t".join([short] + columns))
