//! Against the real kernel, in network namespaces of the tests' own; `nft` only looks at what was made.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use super::*;
use crate::testing::isolated;

fn table() -> Table {
    Table { family: Family::Ipv4, name: "t".into() }
}

fn listing() -> String {
    let out = Command::new("nft").args(["list", "ruleset"]).output().expect("nft");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

fn key(last: u8, port: u16) -> Value {
    Value::new().address([10, 0, 0, last].into()).byte(6).port(port)
}

fn vips() -> Set {
    Set::new("vips", &[Field::Address(Family::Ipv4), Field::Protocol, Field::Port]).to_verdicts()
}

#[test]
fn everything_that_rules_can_say() {
    isolated(async {
        let nft = Nft::open().expect("open");
        let t = table();
        let v4 = Field::Address(Family::Ipv4);
        let mut batch = Batch::new();
        batch.remove_table(&t);
        batch.add_table(&t);
        batch.add_chain(&t, "lb");
        batch.add_chain(&t, "refuse");
        batch.add_set(&t, &vips());
        batch.add_set(
            &t,
            &Set::new("endpoints", &[v4, Field::Protocol, Field::Port, Field::Number]).to_fields(&[v4, Field::Port]),
        );
        batch.add_set(
            &t,
            &Set::new("sticky", &[v4, v4, Field::Protocol, Field::Port]).to_fields(&[Field::Number]).dynamic(1024),
        );
        batch.add_set(&t, &Set::new("numbered", &[Field::Number]).to_fields(&[v4, Field::Port]));
        batch.add_set(&t, &Set::new("inside", &[v4]).of_ranges());
        batch.add_set(&t, &Set::new("outside", &[v4, Field::Protocol, Field::Port]));
        for (chain, kind, hook) in [
            ("pre", ChainKind::Nat, Hook::Prerouting),
            ("post", ChainKind::Nat, Hook::Postrouting),
            ("in", ChainKind::Filter, Hook::Input),
        ] {
            batch.add_base_chain(&t, chain, BaseChain { kind, hook, priority: -5 });
        }
        let key0 = Register(0);
        batch.add_rule(
            &t,
            "pre",
            &Rule::new()
                .load_destination(t.family, key0)
                .load_meta(Meta::Protocol, Register(1))
                .load_port(Register(2))
                .verdict_map("vips", key0),
        );
        // The shapes the service proxy uses. `nft` (1.0.6) aborts on some the kernel accepts, such as a looked-up
        // value inside a concatenation; nobody's `nft list ruleset` shall fail because of us.
        let frontend = |rule: Rule, at: Register| {
            rule.load_destination(t.family, at).load_meta(Meta::Protocol, at.after(4)).load_port(at.after(8))
        };
        batch.add_rule(
            &t,
            "lb",
            &frontend(Rule::new(), key0).load_random(3, Register(3)).map("endpoints", key0, Register(4)).dnat(
                t.family,
                Register(4),
                Register(5),
            ),
        );
        let sticky = |rule: Rule| frontend(rule.load_source(t.family, key0), Register(1));
        batch.add_rule(
            &t,
            "lb",
            &sticky(Rule::new())
                .map("sticky", key0, Register(4))
                .store_mark(Register(4))
                .load_meta(Meta::Mark, Register(4))
                .update_map(SetUpdate::Update, "sticky", key0, Register(4), Some(Duration::from_secs(60)))
                .map("numbered", Register(4), Register(5))
                .load_value(&Value::new().number(0), Register(4))
                .store_mark(Register(4))
                .dnat(t.family, Register(5), Register(6)),
        );
        batch.add_rule(
            &t,
            "lb",
            &sticky(Rule::new()).load_meta(Meta::Mark, Register(4)).update_map(
                SetUpdate::Delete,
                "sticky",
                key0,
                Register(4),
                None,
            ),
        );
        batch.add_rule(
            &t,
            "post",
            &Rule::new()
                .load_ct(Ct::Status, key0)
                .any_bit(key0, CT_STATUS_DNAT)
                .load_ct(Ct::OriginalDestination(t.family), key0)
                .load_meta(Meta::Protocol, Register(1))
                .load_ct(Ct::OriginalPort, Register(2))
                .is_in("outside", key0)
                .masquerade(),
        );
        batch.add_rule(&t, "refuse", &Rule::new().reject(t.family, Reject::PortUnreachable));
        batch.add_rule(
            &t,
            "in",
            &Rule::new()
                .load_ct(Ct::State, key0)
                .any_bit(key0, CT_STATE_NEW)
                .load_meta(Meta::Protocol, key0)
                .compare(key0, Compare::Equal, &Value::new().byte(6))
                .reject(t.family, Reject::TcpReset),
        );
        batch.add_rule(
            &t,
            "post",
            &Rule::new()
                .load_address_type(FibAddress::Source, key0)
                .compare(key0, Compare::Equal, &Value::new().number(ADDRESS_TYPE_LOCAL))
                .load_source(t.family, key0)
                .is_not_in("inside", key0)
                .load_meta(Meta::Mark, key0)
                .bitwise(key0, &Value::new().number(!0x4000), &Value::new().number(0x4000))
                .store_mark(key0)
                .masquerade(),
        );
        batch.add_elements(&t, "vips", &[Element::verdict(key(1, 80), Verdict::Goto("lb".into()))]);
        batch.add_elements(
            &t,
            "endpoints",
            &[Element::value(key(1, 80).number(0), Value::new().address([10, 1, 0, 1].into()).port(8080))],
        );
        let range = Element::range(
            Value::new().address([10, 0, 0, 0].into()),
            Some(Value::new().address([11, 0, 0, 0].into())),
        );
        batch.add_elements(&t, "inside", &range);
        nft.commit(batch).await.expect("commit");

        let listing = listing();
        for want in [
            "10.0.0.1 . tcp . 80 : goto lb",
            "10.1.0.1 . 8080",
            "10.0.0.0/8",
            "ip daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints",
            "dnat ip to meta mark map @numbered",
            "ct original ip daddr . meta l4proto . ct original proto-dst @outside",
            "flags dynamic,timeout",
            "type nat hook prerouting priority",
            "masquerade fully-random",
            "chain refuse {\n\t\treject",
            "reject with tcp reset",
            "ct state new",
            "fib saddr type local",
            "ip saddr != @inside",
        ] {
            assert!(listing.contains(want), "{want:?} is not in\n{listing}");
        }
        assert_eq!(nft.tables_blocking(Family::Ipv4).expect("tables"), ["t"]);
    });
}

#[test]
fn a_transaction_happens_whole_or_not_at_all_and_names_the_culprit() {
    isolated(async {
        let nft = Nft::open().expect("open");
        let t = table();
        let mut batch = Batch::new();
        batch.add_table(&t);
        batch.add_chain(&t, "good");
        batch.delete_chain(&t, "absent");
        let error = nft.commit(batch).await.expect_err("no such chain").to_string();
        assert!(error.contains("delete chain t/absent: No such file or directory"), "{error}");
        assert!(nft.tables_blocking(Family::Ipv4).expect("tables").is_empty(), "nothing of it happened");

        let mut batch = Batch::new();
        batch.add_table(&t);
        batch.add_set(&t, &vips());
        batch.create_elements(&t, "vips", &[Element::verdict(key(1, 1), Verdict::Drop)]);
        nft.commit(batch).await.expect("commit");
        let mut batch = Batch::new();
        batch.create_elements(&t, "vips", &[Element::verdict(key(1, 1), Verdict::Drop)]);
        let error = nft.commit(batch).await.expect_err("exists").to_string();
        assert!(error.contains("create elements in t/vips: File exists"), "{error}");
        // and the socket is good for more
        nft.commit(Batch::new()).await.expect("empty");
        let mut batch = Batch::new();
        batch.delete_elements(&t, "vips", &[Element::of(key(1, 1))]);
        nft.commit(batch).await.expect("delete");
        assert!(nft.elements(&t, "vips").await.expect("list").is_empty());
        assert!(nft.elements(&t, "nothing").await.expect_err("absent").to_string().contains("t/nothing"));
    });
}

#[test]
fn large_sets_go_in_and_come_back() {
    isolated(async {
        let nft = Nft::open().expect("open");
        let t = table();
        let mut elements: Vec<Element> = (0..30_000u32)
            .map(|n| Element::verdict(key((n >> 12) as u8, (n & 0xfff) as u16), Verdict::Goto("lb".into())))
            .collect();
        let mut batch = Batch::new();
        batch.add_table(&t);
        batch.add_chain(&t, "lb");
        batch.add_set(&t, &vips());
        batch.add_elements(&t, "vips", &elements);
        let (size, start) = (batch.size(), Instant::now());
        nft.commit(batch).await.expect("commit");
        println!("30,000 elements, {size} bytes: {:?}", start.elapsed());
        let start = Instant::now();
        let mut got = nft.elements(&t, "vips").await.expect("list");
        println!("listed in {:?}", start.elapsed());
        got.sort_by_key(|e| e.key);
        elements.sort_by_key(|e| e.key);
        assert!(got == elements, "{} of {}", got.len(), elements.len());

        let mut batch = Batch::new();
        batch.flush_set(&t, "vips");
        nft.commit(batch).await.expect("flush");
        assert!(nft.elements(&t, "vips").await.expect("list").is_empty());
    });
}
