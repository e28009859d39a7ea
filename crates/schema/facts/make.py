#!/usr/bin/env python3
"""Makes markers.tsv, the facts about Kubernetes types that k8s-openapi's schemas lack.

usage: make.py schema-facts.json < names-of-definitions > markers.tsv

Input is the published OpenAPI document reduced to bare facts (per definition: fields with their x-kubernetes-*
markers, and group-version-kinds) and, on stdin, one name per line of the definitions of the version served. A
definition that the document does not have yet takes the markers of the same type in a sibling version of its group.

Output, one line per fact: definition, field ("." for the definition itself), then marker=value columns.
"""
import json
import sys

definitions = json.load(open(sys.argv[1]))["definitions"]
served = [line.strip() for line in sys.stdin if line.strip()]
SHORT = {
    "x-kubernetes-list-type": "list",
    "x-kubernetes-list-map-keys": "keys",
    "x-kubernetes-map-type": "map",
    "x-kubernetes-patch-strategy": "patch",
    "x-kubernetes-patch-merge-key": "merge",
    "default": "default",
}


def text(marker, value):
    if marker == "default":
        return json.dumps(value)
    return ",".join(value) if isinstance(value, list) else value


def sibling(name):
    """The facts of the same type in another version of the group, newest first."""
    package, kind = name.rsplit(".", 1)
    group = package.rsplit(".", 1)[0]
    found = [n for n in definitions if n.rsplit(".", 2)[0] == group and n.rsplit(".", 1)[1] == kind]
    return definitions[sorted(found)[-1]] if found else {}


for name in sorted(set(served) | {n for n in definitions if n.endswith("List")}):
    known = name in definitions
    facts = definitions[name] if known else sibling(name)
    own = []
    if known:
        own += ["gvk=" + gvk for gvk in facts.get("gvk", [])]
    if "x-kubernetes-map-type" in facts:
        own.append("map=" + facts["x-kubernetes-map-type"])
    if "x-kubernetes-unions" in facts:
        own.append("unions=" + json.dumps(facts["x-kubernetes-unions"], separators=(",", ":")))
    if own and not (name.endswith("List") and name not in served):
        print("\t".join([name, "."] + own))
    for field, fact in sorted(facts.get("fields", {}).items()):
        if isinstance(fact, dict) and name in served:
            markers = [f"{SHORT[m]}={text(m, v)}" for m, v in sorted(fact.items()) if m in SHORT]
            if markers:
                print("\t".join([name, field] + markers))
